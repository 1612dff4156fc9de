"""HDF5 locks files itself; it must also work on file systems without locks."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

_SHIM = """
#include <errno.h>
int flock(int descriptor, int operation) { errno = %s; return -1; }
"""
_CODE = """
import pathlib, sys
import numpy as np
from prottrans_jax.embed import formats, writers
path = pathlib.Path(sys.argv[1])
writer = writers.create(path, {"a": 1})
writer.add(writers.Entry("P", "P", "", 2, "", np.ones((2, 3), np.float16)))
writer.close()
print([entry.array.shape for entry in formats.entries(path)])
"""


@pytest.mark.parametrize("name", ["EOPNOTSUPP", "ENOLCK", "ENOSYS"])
def test_hdf5_is_written_and_read_where_flock_fails(tmp_path, name):
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler to stand in for such a file system")
    (tmp_path / "shim.c").write_text(_SHIM % name)
    shim = tmp_path / "shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", shim, tmp_path / "shim.c"], check=True
    )
    done = subprocess.run(
        [sys.executable, "-c", _CODE, tmp_path / "x.h5"],
        env=os.environ | {"LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[(2, 3)]\n"


def test_a_file_that_another_program_writes_is_not_read(monkeypatch, tmp_path):
    import h5py

    from prottrans_jax.embed import formats

    def refuse(*unused, **options):
        raise OSError(f"unable to lock file, errno = {errno.EAGAIN}, busy")

    (tmp_path / "x.h5").write_bytes(b"")
    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(ValueError, match=r"x\.h5"):
        formats.open_hdf5(tmp_path / "x.h5")
