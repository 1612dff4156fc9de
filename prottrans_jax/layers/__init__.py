"""Blocks that two or more families share. May import kernels and types."""
