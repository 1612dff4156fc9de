"""The six model families, one file each: configuration, layers, FLOPs.

  t5, bert, albert, electra, xlnet, transformer_xl
  choices    checks of fields that all configurations share

May import layers and types.
"""
