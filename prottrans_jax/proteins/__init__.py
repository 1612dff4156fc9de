"""A protein as text: what files of sequences are, and what is in them.

May import `fasta`, `unpacking` and `vocabulary`, nothing else of the package.
"""
