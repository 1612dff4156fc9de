"""The dependencies' versions are the ones that work together in one process."""

import importlib.util
import subprocess
import sys

import pytest

_TOGETHER = "seqio sentencepiece sentencepiece.sentencepiece_model_pb2 tensorflow"


@pytest.mark.parametrize("extra", ["", "apache_beam"])
def test_protobuf_users_import_in_one_process(extra):
    # pip resolves other versions silently, and `import seqio` then dies at run time.
    if extra and importlib.util.find_spec(extra) is None:
        pytest.skip(f"{extra} is not installed: pip install prottrans_jax[beam]")
    names = [*_TOGETHER.split(), "orbax.checkpoint", "array_record", extra]
    code = "\n".join(f"import {name}" for name in names if name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
