"""Published peaks of accelerators, for model FLOPs utilisation and for estimates.

Sources, per chip:
  [v2v3]  Jouppi et al., A domain-specific supercomputer for training deep neural
          networks, CACM 63(7), 2020: FLOP/s, HBM, four links of 496 (v2) or 656 (v3)
          Gbit/s each way
  [cloud] cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e}, tables of key specifications;
          of an interconnect figure called bidirectional, half is used for each way
  [a100]  NVIDIA A100 80GB data sheet, SXM; NVLink 600 GB/s, both ways together
  [h100]  NVIDIA H100 data sheet, SXM, no sparsity; NVLink 900 GB/s, both ways together
  [h200]  NVIDIA H200 data sheet, SXM, likewise
"""

import dataclasses

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip.

    Attributes:
      name: As in gin leaves and topologies.
      cores: TensorCores (1 for a GPU).
      flops: Dense bfloat16 FLOP/s.
      hbm_bytes: Size of the main memory.
      hbm_bandwidth: Bytes/s of the main memory.
      link_bandwidth: Bytes/s sent by the chip over all its links together.
      source: Key in the module's list of sources.
    """

    name: str
    cores: int
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    source: str

    def share(self, devices_per_chip: int) -> "Chip":
        """Peaks of one JAX device if a chip has several."""
        n = devices_per_chip
        return dataclasses.replace(
            self,
            cores=self.cores // n,
            flops=self.flops / n,
            hbm_bytes=self.hbm_bytes // n,
            hbm_bandwidth=self.hbm_bandwidth / n,
            link_bandwidth=self.link_bandwidth / n,
        )


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v2", 2, 46e12, 16 * GIB, 700e9, 4 * 496e9 / 8, "[v2v3]"),
        Chip("v3", 2, 123e12, 32 * GIB, 900e9, 4 * 656e9 / 8, "[v2v3]"),
        Chip("v4", 2, 275e12, 32 * GIB, 1200e9, 2400e9 / 8, "[cloud]"),
        Chip("v5e", 1, 197e12, 16 * GIB, 819e9, 1600e9 / 8, "[cloud]"),
        Chip("v5p", 2, 459e12, 95 * GIB, 2765e9, 1200e9 / 2, "[cloud]"),
        Chip("v6e", 1, 918e12, 32 * GIB, 1640e9, 3584e9 / 8, "[cloud]"),
        Chip("A100", 1, 312e12, 80 * GIB, 2039e9, 600e9 / 2, "[a100]"),
        Chip("H100", 1, 989e12, 80 * GIB, 3350e9, 900e9 / 2, "[h100]"),
        Chip("H200", 1, 989e12, 141 * GIB, 4800e9, 900e9 / 2, "[h200]"),
    )
}

# Longest first: "TPU v5 lite" is a v5e, "TPU v5" a v5p.
_KINDS = (
    ("TPU v6 lite", "v6e"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5p", "v5p"),
    ("TPU v5e", "v5e"),
    ("TPU v6e", "v6e"),
    ("TPU v5", "v5p"),
    ("TPU v4", "v4"),
    ("TPU v3", "v3"),
    ("TPU v2", "v2"),
    ("NVIDIA A100", "A100"),
    ("NVIDIA H100", "H100"),
    ("NVIDIA H200", "H200"),
)
# Chips whose TensorCores are separate JAX devices.
_TWO_DEVICES_A_CHIP = ("v2", "v3")


def chip_of(device: jax.Device) -> Chip | None:
    """The chip of a device; None if no peaks are published (a CPU)."""
    return chip_of_kind(device.device_kind)


def chip_of_kind(kind: str) -> Chip | None:
    """The chip by its name in JAX or a driver, for example "NVIDIA H100 80GB HBM3"."""
    for prefix, name in _KINDS:
        if kind.startswith(prefix):
            return CHIPS[name]
    return None


def peak_flops(device: jax.Device) -> float | None:
    """Peak bfloat16 FLOP/s of a device; None if none is published (a CPU)."""
    chip = chip_of(device)
    if chip is None:
        return None
    return chip.flops / (2 if chip.name in _TWO_DEVICES_A_CHIP else 1)
