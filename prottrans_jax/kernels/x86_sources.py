"""The C++ sources of the compiled kernels.

`setup.py` runs this file before the package can be imported: it needs nothing but the
standard library.
"""

import hashlib
import pathlib

# Exists in a checkout; an installed package has the compiled module only.
FOLDER = pathlib.Path(__file__).with_name("x86_cc")


def files() -> list[pathlib.Path]:
    """Sources and headers in a fixed order; none in an installed package."""
    return sorted(path for path in FOLDER.rglob("*") if path.suffix in (".cc", ".h"))


def digest() -> str | None:
    """SHA-256 of all files, names included; None in an installed package."""
    total = hashlib.sha256()
    for path in files():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(FOLDER).as_posix()} {content}\n".encode())
    return total.hexdigest() if files() else None
