"""The six model families, one file each: configuration, layers, FLOPs.

  t5, bert, albert, electra, xlnet, transformer_xl
  memory_models    what Transformer-XL and XLNet share
  t5_decoding, memory_decoding    T5, Transformer-XL and XLNet one token at a time
  choices    checks of fields that all configurations share

A model is `Model(config, compute)`: the family's configuration, and
`layers.compute.ComputeConfig`. Every model declares

  encode(tokens, mask, *, deterministic) -> [batch, length, d_model]
  has_dot_product_attention    whether its attention is that of `layers.attention`,
                               which has kernels for GPUs and x86 CPUs, unlike the
                               relative attention of XLNet and Transformer-XL
  max_length                   positions in a row; None if there is no limit

May import layers and types.
"""
