"""The host half of each pre-training objective: selects inputs and targets.

  streams                      the `Corruption` protocol
  iid_noise, span_corruption   T5
  masking, framing, ngrams     BERT, ALBERT and ELECTRA
  permuted                     XLNet
  causal                       Transformer-XL
  substitution                 random substitution of amino acids
  position_kinds               kinds of positions; shared with `objectives/`

NumPy only; may import `data.random_bits` and proteins.
"""
