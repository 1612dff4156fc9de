"""Memory that converting takes: an encoder of 1.2 billion parameters, 2.4 GB."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from prottrans_jax.files import memory_map
from prottrans_jax.interop import hf_t5, rules, safetensors
from prottrans_jax.models import t5

LIMIT = 1.3  # times the size of the checkpoint
# ProtT5-XL's encoder: 1,208,141,824 parameters.
XL = t5.T5Config(
    vocab_size=128,
    num_layers=24,
    num_decoder_layers=0,
    num_heads=32,
    head_dim=128,
    d_model=1024,
    d_ff=16384,
)
# Peak of the resident set; `ru_maxrss` would begin with that of the parent.
MEASURED = """
import sys
from prottrans_jax import convert
from absl import flags
flags.FLAGS(sys.argv)
status = convert.main(sys.argv[:1])
lines = open("/proc/self/status").read().splitlines()
print(next(line for line in lines if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(status)
"""


class _Lazy(dict):
    """Arrays that are made when asked for, so that the test itself stays small."""

    def __init__(self, shapes):
        super().__init__({name: np.empty(0, np.float16) for name in shapes})
        self._shapes = shapes

    def items(self):
        rng = np.random.default_rng(0)
        noise = rng.normal(size=1 << 20).astype(np.float16)
        for name, shape in self._shapes.items():
            yield name, np.resize(noise, shape)


def _write_random(folder: pathlib.Path, as_pickle: bool) -> int:
    names = {rule.foreign: rule for rule in hf_t5._table(XL)}
    shapes = {name: x for name, x in rules.flat_shapes(t5.init_params, XL).items()}
    theirs = {
        name: shapes[rule.native][::-1] if rule.transpose else shapes[rule.native]
        for name, rule in names.items()
        if rule.native in shapes
    }
    assert sum(map(np.prod, theirs.values())) == 1_208_141_824
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_t5.config_to_hf(XL)))
    if not as_pickle:
        path = folder / "model.safetensors"
        safetensors.save(path, _Lazy(theirs))
        return path.stat().st_size
    torch = pytest.importorskip("torch")
    path = folder / "pytorch_model.bin"
    torch.save({n: torch.from_numpy(x) for n, x in _Lazy(theirs).items()}, path)
    return path.stat().st_size


def resident_file_bytes() -> int:
    """Pages of mapped files that count as this process's memory."""
    path = pathlib.Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [int(x.split()[1]) * 1024 for x in lines if x.startswith("RssFile")]
    if not found:
        pytest.skip("the system does not say how many pages of files are resident")
    return found[0]


def test_released_pages_are_no_longer_resident_and_read_again(tmp_path):
    size = 1 << 25
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=size // 8).reshape(2, -1) for name in "abc"}
    safetensors.save(tmp_path / "x", arrays)
    before = resident_file_bytes()
    loaded = safetensors.load(tmp_path / "x")
    assert resident_file_bytes() < before + size // 8
    sums = {name: x.sum() for name, x in loaded.items()}
    assert resident_file_bytes() > before + 2.9 * size
    memory_map.release(loaded["b"].T)  # a view of a view
    assert resident_file_bytes() < before + 2.1 * size
    memory_map.release(np.ones(5))  # no view of a file: nothing happens
    for name, array in loaded.items():
        assert array.sum() == sums[name] == arrays[name].sum()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["safetensors", "bin"])
@pytest.mark.parametrize("form", ["hf", "t5x", "prottrans"])
def test_converting_holds_little_more_than_the_checkpoint(tmp_path, source, form):
    size = _write_random(tmp_path / "in", source == "bin")
    done = subprocess.run(
        [
            *(sys.executable, "-c", MEASURED),
            *(f"--input={tmp_path}/in", f"--output={tmp_path}/out", f"--to={form}"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1,208,141,824 parameters, float16" in done.stdout
    peak = next(x for x in done.stderr.splitlines() if x.startswith("VmHWM"))
    peak_bytes = int(peak.split()[1]) * 1024
    print(f"{source} to {form}: {size:,} bytes, peak {peak_bytes:,}")
    assert peak_bytes <= LIMIT * size
