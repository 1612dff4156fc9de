"""Frozen models: `load_encoder`, `load_model`, their parameters, attention, export.

  loading         `Encoder`, `Model`, and loading them from any checkpoint
  frozen_params   casts, quantizes and places parameters on the device
  attention_maps  attention weights of one protein
  exporting       writes folders of frozen models and StableHLO programs

May import checkpoints, embed, interop, layers, proteins. No TensorFlow, no gin.
"""
