"""Published peaks of accelerators, for model FLOPs utilisation and for estimates."""

import jax

# Dense bfloat16 FLOP/s of one JAX device. v2 and v3 have two devices a chip.
_PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak bfloat16 FLOP/s of a device, or None where none is published (a CPU)."""
    kind = device.device_kind
    matches = [name for name in _PEAK_FLOPS if kind.startswith(name)]
    return _PEAK_FLOPS[max(matches, key=len)] if matches else None
