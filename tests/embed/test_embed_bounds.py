"""Memory that does not grow with the input; padding and shapes that stay few."""

import json
import os
import subprocess
import sys

from embed_cases import write_fasta
import numpy as np
import pytest

from prottrans_jax.embed import batching

# Embeds and prints the memory held after each tenth of the proteins, then the peak.
SCRIPT = """
import json, sys, psutil
import prottrans_jax
from prottrans_jax.embed import job, settings
process, held, tenth = psutil.Process(), [], 0
def note(progress):
    global tenth
    if progress.proteins * 10 >= (tenth + 1) * progress.of_proteins:
        tenth += 1
        held.append(process.memory_info().rss)
encoder = prottrans_jax.load_encoder(sys.argv[1], dtype="float32")
options = settings.Options(per_protein=True)
report = job.embed_fasta(
    encoder, sys.argv[2], sys.argv[3], options, on_progress=note
)
peak = report.peak_memory_bytes
print(json.dumps({"held": held, "peak": peak, "padding": report.padding}))
"""


def run(model_folder, folder, count):
    generator = np.random.default_rng(0)
    lengths = np.minimum(generator.lognormal(np.log(270), 0.8, count), 3000)
    letters = "".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), 4000))
    proteins = {
        f"P{i}": letters[i % 997 : i % 997 + max(1, int(length))]
        for i, length in enumerate(lengths)
    }
    source = write_fasta(folder / "x.fasta", proteins)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model_folder, source, folder / "out.npz"],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_memory_is_flat_over_100_000_proteins(model_folder, tmp_path):
    found = run(model_folder, tmp_path, 100_000)
    after_warm_up = found["held"][1:]
    assert max(after_warm_up) <= 1.1 * min(after_warm_up)
    assert found["peak"] <= 2 << 30


@pytest.mark.slow
def test_titin_goes_through_whole_in_4_gib(model_folder, tmp_path):
    generator = np.random.default_rng(1)
    titin = "".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), 34_350))
    source = write_fasta(tmp_path / "x.fasta", {"TITIN": titin})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model_folder, source, tmp_path / "out.npz"],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["peak"] <= 4 << 30
    assert np.load(tmp_path / "out.npz")["TITIN"].shape == (12,)


def lengths_like_proteins(count):
    generator = np.random.default_rng(3)
    lengths = generator.lognormal(np.log(270), 0.6, count)
    return np.clip(lengths, 20, 2000).astype(int)


def test_padding_is_at_most_three_percent_in_few_shapes():
    lengths = lengths_like_proteins(4000)
    # Compiling costs as much as 500 tokens: a large model on a CPU.
    buckets = batching.choose_buckets(lengths, 500.0)
    batches = list(batching.plan(lengths, buckets, 512))
    assert sorted(i for batch in batches for i in batch.members) == list(range(4000))
    assert batching.padding_share(batches, lengths) <= 0.03
    assert len({(batch.rows, batch.length) for batch in batches}) <= 66


def test_dear_programs_mean_few_buckets_and_cheap_ones_many():
    lengths = lengths_like_proteins(300)
    counts = [
        len(batching.choose_buckets(lengths, cost)) for cost in (0, 1e3, 1e4, 1e9)
    ]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 1
    assert counts[0] > counts[2]


def test_buckets_are_the_best_of_all_choices():
    lengths = np.array([5, 9, 9, 30, 31, 33, 90, 200, 201, 390])
    rounded = batching.round_up(lengths)
    sizes = sorted(set(rounded.tolist()))

    def cost(bounds, each):
        padded = [min(b for b in bounds if b >= size) for size in rounded]
        return sum(padded) + each * len(bounds)

    def subsets(items):
        if not items:
            return [[]]
        rest = subsets(items[1:])
        return rest + [[items[0], *more] for more in rest]

    for each in (0.0, 50.0, 130.0, 1000.0):
        best = min(cost([*chosen, sizes[-1]], each) for chosen in subsets(sizes[:-1]))
        found = batching.choose_buckets(lengths, each)
        assert cost(found.tolist(), each) == best


def test_plan_depends_on_nothing_but_lengths():
    lengths = lengths_like_proteins(500)
    buckets = batching.choose_buckets(lengths)
    first = list(batching.plan(lengths, buckets, 2048, 7))
    assert first == list(batching.plan(lengths.tolist(), buckets, 2048, 7))
    assert all(batch.rows <= 7 for batch in first)
    assert all(batch.rows * batch.length <= 2048 or batch.rows == 1 for batch in first)
    assert all(lengths[i] <= batch.length for batch in first for i in batch.members)


def test_no_sequences_are_no_batches():
    assert batching.choose_buckets(np.zeros(0, int)).size == 0
    assert list(batching.plan([], np.zeros(0, int), 512)) == []
