"""What a compiled training step costs: memory, FLOPs, bytes, collectives.

  hlo, hlo_costs   the compiled program read as text; its costs
  hardware         published peaks of accelerators

Imports nothing else of the package.
"""
