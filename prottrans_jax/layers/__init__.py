"""Blocks that two or more families share.

  attention, relative_bias    dot-product attention; T5's bucketed position bias
  relative_attention          attention of Transformer-XL and XLNet
  cached_attention            both kinds, to cached keys and values
  dense, mlp                  matrix products; feed-forward blocks
  norms, dropout, embeddings
  compute                     how a model is computed: types, attention, loops
  stack                       the only scan over layers, and rematerialisation

May import kernels and types.
"""
