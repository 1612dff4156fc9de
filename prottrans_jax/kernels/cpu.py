"""Which instructions this machine's CPU has."""

import functools
import re


@functools.cache
def flags() -> frozenset[str] | None:
    """Their names as Linux has them; None where that cannot be read."""
    try:
        with open("/proc/cpuinfo") as file:
            found = re.search(r"^(flags|Features)\s*:(.*)$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else frozenset(found[2].split())
