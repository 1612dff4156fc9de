"""The device half of each pre-training objective: computes the loss of a batch.

  denoising                   T5
  masked_lm                   BERT and ALBERT
  replaced_token_detection    ELECTRA
  permutation_lm              XLNet
  causal_lm                   Transformer-XL
  objective                   their base class: initial parameters, a pass of the model
  losses                      losses per position, not reduced

May import models and types.
"""
