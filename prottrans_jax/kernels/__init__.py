"""Faster kernels for frozen models: compiled ones for x86 CPUs, and int8 weights.

`x86` wraps the optional compiled module `_x86`, whose C++ sources in `x86_cc/`
`x86_sources` lists; `cpu` lists the instruction sets of this CPU; `quantized` holds
int8 weights. Imports layers.relative_bias and JAX only.
"""
