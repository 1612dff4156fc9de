"""Costs of a compiled training step: memory, FLOPs, bytes, collectives.

  hlo, hlo_costs   parser of the compiled program's text; its costs
  hardware         published peaks of accelerators

Imports no other room.
"""
