"""A tiny leaf compiled for TPUs that are not here, by the command itself."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from prottrans_jax.costs import hardware, hlo_costs

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='the TPU compiler is not installed: pip install "prottrans_jax[train,tpu]"',
)

TINY = """
include "prot_t5_small.gin"
from __gin__ import dynamic_registration
from prottrans_jax.models import t5
t5.T5Config.num_layers = 3
t5.T5Config.num_decoder_layers = 3
t5.T5Config.d_model = 128
t5.T5Config.d_ff = 256
t5.T5Config.num_heads = 4
t5.T5Config.head_dim = 32
TASK_FEATURE_LENGTHS = {"inputs": 128, "targets": 128}
REMAT_POLICY = "full"
PARTITIONING = "2d"
MODEL_PARALLEL = 2
BATCH_SIZE = 32
"""


def precompile(folder, *arguments):
    leaf = folder / "tiny.gin"
    leaf.write_text(TINY)
    command = [sys.executable, "-m", "prottrans_jax.precompile"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [*command, f"--gin_file={leaf}", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


@needs_libtpu
def test_report_and_table_of_a_tiny_leaf_on_eight_cores(tmp_path):
    out = precompile(tmp_path, "--topology=v3:2x2", "--table=docs/table.md")
    assert out.returncode == 0, out.stderr[-3000:]
    assert "8 devices of TPU v3, mesh data=4, model=2" in out.stdout
    # By hand: (attention + norm + mlp + norm) x 3, decoders with a second attention,
    # 32 buckets x 4 heads and a final norm twice, and the embedding.
    attention, mlp = 4 * 128 * 128 + 128, 2 * 128 * 256 + 128
    count = 3 * (3 * attention + 2 * mlp) + 2 * (32 * 4 + 128) + 128 * 128
    assert f"{count:,} parameters" in out.stdout
    # Full rematerialisation computes the forward pass of the layers again: 4/3.
    ratio = float(re.search(r"compiled \(([\d.]+) times\)", out.stdout)[1])
    assert 1.2 < ratio < 1.45
    used, available = re.search(r"= ([\d.]+) of ([\d.]+) GiB", out.stdout).groups()
    assert 0 < float(used) < 1 and float(available) == 16.0
    for kind in ("all-gather", "all-reduce", "reduce-scatter"):
        assert kind in out.stdout
    assert re.search(r"MFU [\d.]+ %: (compute|memory|interconnect) binds", out.stdout)
    line = (tmp_path / "docs" / "table.md").read_text().splitlines()[-1]
    assert line.startswith("| tiny | v3:2x2 | 8 | 4 x 2 | 2d | full | 32 | 1 |")


@needs_libtpu
def test_too_large_a_batch_says_what_the_compiler_said_and_exits_3(tmp_path):
    out = precompile(tmp_path, "--topology=v3:2x2", "--gin.BATCH_SIZE=262144")
    assert out.returncode == 3, out.stderr[-3000:]
    assert "Does not fit" in out.stdout and "RESOURCE_EXHAUSTED" in out.stdout
    assert "Traceback" not in out.stdout + out.stderr


@needs_libtpu
def test_unknown_topology_is_a_plain_error(tmp_path):
    out = precompile(tmp_path, "--topology=v9:2x2")
    assert out.returncode == 2
    assert "v9:2x2" in out.stderr and "v3:16x32" in out.stderr
    assert "Traceback" not in out.stderr


@needs_libtpu
def test_compared_layouts_are_ranked_and_impossible_ones_named(tmp_path):
    out = precompile(
        tmp_path,
        "--topology=v3:2x2",
        # 3 does not divide 8 cores.
        "--compare=2d:2:full,2d:3:full,fully_sharded:save_outputs",
        "--table=table.md",
    )
    assert out.returncode == 0, out.stderr[-3000:]
    summary = out.stdout.split("Layouts on v3:2x2, the best first")[1]
    ranked = re.findall(r"^ +([\d.]+) s  MFU at most .*  (\S+ .*|\S+)$", summary, re.M)
    assert [float(seconds) for seconds, _ in ranked] == sorted(
        float(seconds) for seconds, _ in ranked
    )
    assert {layout.split("  ")[-1].strip() for _, layout in ranked} == {
        "2d over 2, full",
        "fully_sharded, save_outputs",
    }
    assert "2d over 3, full: not possible" in summary
    assert "perfect overlap assumed" in summary
    lines = (tmp_path / "table.md").read_text().splitlines()
    cells = {tuple(x.split(" | ")[3:6]) for x in lines if x.startswith("| tiny")}
    assert cells == {
        ("4 x 2", "2d", "full"),
        ("8 x 1", "fully_sharded", "save_outputs"),
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("zero:full", "scheme 'zero' is not one of data_parallel, "),
        ("2d:2:most", "remat policy 'most' is not one of none, full, "),
        ("fully_sharded", "remat policy '' is not one of"),
        ("2d:0:full", "'0' is not a size of the mesh axis"),
        ("2d:two:full", "'two' is not a size"),
        ("2d:2:2:full", "'2:2' is not a size"),
    ],
)
def test_malformed_layout_is_refused_by_value(text, message):
    from prottrans_jax import precompile
    from prottrans_jax.config import building

    with pytest.raises(building.UsageError) as error:
        precompile.Layout.parse(text)
    assert message in str(error.value) and f"--compare={text}" in str(error.value)


def test_a_layout_is_read_with_and_without_a_size_of_the_axis_model():
    from prottrans_jax import precompile

    assert precompile.Layout.parse("2d:8:full").bindings == [
        "PARTITIONING = '2d'",
        "MODEL_PARALLEL = 8",
        "REMAT_POLICY = 'full'",
    ]
    assert precompile.Layout.parse("fully_sharded:minimal").model == 1


def test_lines_of_the_table_are_replaced_not_repeated(tmp_path):
    from prottrans_jax import precompile

    path = tmp_path / "table.md"
    cells = ["xl", "v3:16x32", "1,024", "128 x 8", "2d", "full", "4,096", "1"]
    rest = ["3.00", "16", "1.25", "1.0", "0.5", "0.1", "compute", "80 %"]

    def line(key, rest):
        return f"| {' | '.join(key + rest)} |"

    precompile.add_line(path, line(cells, rest))
    small = [*cells[:1], "v3:2x2", "8", "1 x 8", *cells[4:]]
    precompile.add_line(path, line(small, rest))
    precompile.add_line(path, line(cells, ["2.50", *rest[1:]]))
    rows = [x for x in path.read_text().splitlines() if x.startswith("| xl")]
    assert rows == [line(small, rest), line(cells, ["2.50", *rest[1:]])]


@pytest.mark.parametrize(
    ("kind", "chip", "flops"),
    [
        ("TPU v2", "v2", 23e12),
        ("TPU v3", "v3", 61.5e12),
        ("TPU v4", "v4", 275e12),
        ("TPU v5 lite", "v5e", 197e12),
        ("TPU v5", "v5p", 459e12),
        ("TPU v6 lite", "v6e", 918e12),
        ("NVIDIA H100 80GB HBM3", "H100", 989e12),
        ("NVIDIA H200", "H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", "A100", 312e12),
    ],
)
def test_peaks_of_what_jax_calls_a_device(kind, chip, flops):
    device = type("Device", (), {"device_kind": kind})()
    assert hardware.chip_of(device).name == chip
    assert hardware.peak_flops(device) == flops


def test_cpu_has_no_published_peak():
    assert hardware.peak_flops(type("Device", (), {"device_kind": "cpu"})()) is None


@pytest.mark.parametrize(("temporaries", "fits"), [(14, True), (15, False)])
def test_a_step_fits_only_with_its_arguments_beside_its_temporaries(temporaries, fits):
    from prottrans_jax.training import step_report

    chip = hardware.CHIPS["v3"].share(2)  # 16 GiB.
    report = step_report.Report(
        topology=step_report.Topology("v3:2x2", chip, ()),
        mesh={"data": 8},
        num_params=5,
        batch_size=8,
        num_microbatches=1,
        compile_seconds=1.0,
        argument_bytes=2 << 30,
        temporary_bytes=temporaries << 30,
        model_flops=1.0,
        costs=hlo_costs.Costs(flops=1.0, bytes=1.0, collectives={}, trip_counts={}),
        compiler="",
    )
    assert report.fits == fits
