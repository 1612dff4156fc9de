"""Proteins as text and as ids.

  fasta            FASTA as a stream, with a defined result for every anomaly
  fasta_blocks     blocks of FASTA text, parsed into records and problems
  fasta_problems   faults of a file or a record, with their place
  tables           tables of sequences: TSV and CSV
  unpacking        decompression
  kinds            other kinds of files, recognised by their first bytes
  nucleotides      nucleotides in place of proteins
  vocabulary       from letters to the ids of each family
  plurals          counts in messages

Imports no other room.
"""
