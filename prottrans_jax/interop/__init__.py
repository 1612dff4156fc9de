"""Other libraries' checkpoints, in both directions."""
