"""Frozen models: `load_encoder`, `load_model`, their parameters, attention, export.

  loading         `Encoder`, `Model` and how they are loaded from any checkpoint
  frozen_params   their parameters on the device
  attention_maps  attention weights of one protein
  exporting       folders of frozen models and StableHLO programs

May import checkpoints, embed, interop, layers, proteins. No TensorFlow, no gin.
"""
