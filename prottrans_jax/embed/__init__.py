"""Embeddings from FASTA: batches, pooling, committed shards, output files."""
