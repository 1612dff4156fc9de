"""Proteins as text and as ids: FASTA, tables, compressed streams, vocabulary.

Imports nothing else of the package.
"""
