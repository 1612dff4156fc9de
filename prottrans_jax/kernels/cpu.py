"""Instruction sets of this machine's CPU."""

import functools
import re


@functools.cache
def flags() -> frozenset[str] | None:
    """Names of the CPU's features as in /proc/cpuinfo; None if it cannot be read."""
    try:
        with open("/proc/cpuinfo") as file:
            line = re.search(r"^(flags|Features)\s*:(.*)$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return None if line is None else frozenset(line[2].split())
