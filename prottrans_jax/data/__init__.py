"""Host side: records, their order, packing and corruption."""
