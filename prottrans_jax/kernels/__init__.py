"""The fastest way on the device at hand: compiled parts for x86 CPUs, int8 weights.

`x86` wraps the compiled module `_x86`, which is optional; `cpu` names the instructions
of this CPU; `quantized` holds int8 weights. Imports layers.relative_bias and JAX only.
"""
