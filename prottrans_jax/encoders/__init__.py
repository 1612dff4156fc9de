"""Frozen models: `load_encoder`, `load_model`, their parameters, attention, export.

  loading         finds a checkpoint of any kind and loads it as a frozen model
  frozen_models   `Encoder` and `Model`
  frozen_params   casts, quantizes and places parameters on the device
  attention_maps  attention weights of one protein
  controls        one-hot residues and random weights, to compare with
  exporting       writes folders of frozen models and StableHLO programs

May import checkpoints, embed, files, interop, kernels, layers, proteins and types. No
TensorFlow, no gin.
"""
