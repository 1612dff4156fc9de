"""The fastest way to compute a thing on the device at hand.

  products            matrix products
  softmax_attention   dot-product attention within segments
  normalising         layer norm and root-mean-square norm

These choose inside between:

  x86                 C++ for x86 CPUs in `x86_cc/` (listed by `x86_sources`), compiled
                      with the package as `_x86`, if possible
  quantized           int8 weights
  distance_bias       bias by distance, for attention
  cpu                 instruction sets of this CPU
  frozen              where kernels without gradients may be used

Imports no other room, and no library besides JAX, numpy and absl.
"""
