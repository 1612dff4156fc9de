"""Bounds of memory, of padding and of the number of programs."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from cases.embed_cases import make_model, write_fasta
from prottrans_jax.embed import batching

# Embeds and prints the process's peak memory after 10,000 proteins and at the end.
SCRIPT = """
import json, sys
import prottrans_jax
from prottrans_jax.embed import job, reports, settings

peaks = {}
def note(progress):
    if progress.proteins in (10_000, progress.of_proteins):
        peaks[progress.proteins] = reports.peak_memory_bytes()

encoder = prottrans_jax.load_encoder(sys.argv[1], dtype="float32")
options = settings.Options(per_protein=True, output_dtype="float16")
report = job.embed_fasta(
    encoder, sys.argv[2], sys.argv[3], options, on_progress=note
)
end = report.peak_memory_bytes
print(json.dumps({"computed": peaks, "end": end, "embedded": report.embedded}))
"""


def run(model_folder, source, output):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model_folder, source, output],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_flat_over_100_000_proteins(tmp_path):
    # One layer: what is counted is records, and most of the time is attention.
    model = make_model(
        tmp_path / "model", 0, num_layers=1, num_decoder_layers=0, num_heads=1
    )
    letters = "".join(
        np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), 4000)
    )
    proteins = {
        f"P{i}": letters[i % 997 : i % 997 + length]
        for i, length in enumerate(lengths_like_proteins(100_000).tolist())
    }
    source = write_fasta(tmp_path / "x.fasta", proteins)
    memory = run(model, source, tmp_path / "out.npz")
    print({name: memory[name] for name in ("computed", "end")})
    assert memory["embedded"] == 100_000
    early = memory["computed"]["10000"]
    assert memory["computed"]["100000"] <= 1.1 * early
    assert memory["end"] <= min(1.1 * early, 2 << 30)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [5, 32])  # 32: also for `x86.attention`.
def test_titin_is_embedded_whole_in_4_gib(head_dim, tmp_path):
    sizes = {"num_heads": 3, "head_dim": head_dim, "d_model": 64, "d_ff": 96}
    model = make_model(
        tmp_path / "model", 0, num_layers=1, num_decoder_layers=0, **sizes
    )
    generator = np.random.default_rng(1)
    titin = "".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), 34_350))
    source = write_fasta(tmp_path / "x.fasta", {"TITIN": titin})
    memory = run(model, source, tmp_path / "out.npz")
    assert memory["end"] <= 4 << 30
    assert np.load(tmp_path / "out.npz")["TITIN"].shape == (64,)


def lengths_like_proteins(count):
    generator = np.random.default_rng(3)
    lengths = generator.lognormal(np.log(270), 0.6, count)
    return np.clip(lengths, 20, 2000).astype(int)


def count_programs(num_windows, **options):
    """Programs in the end, of how many lengths, for 20,000 proteins in windows."""
    lengths = lengths_like_proteins(20_000)
    buckets = batching.choose_buckets(lengths, 20_000.0)
    seen: set[tuple[int, int]] = set()
    for window in np.split(lengths, num_windows):
        batches = list(
            batching.plan(window, buckets, 4096, None, None, 20_000.0, seen, **options)
        )
        assert sorted(i for batch in batches for i in batch.members) == list(
            range(len(window))
        )
        assert seen >= {(batch.rows, batch.length) for batch in batches}
    return len(seen), len(buckets)


def test_windows_of_a_job_share_their_programs():
    """A new shape for the last batch of each window would be compiled each time."""
    programs, num_buckets = count_programs(20)
    assert programs == num_buckets  # Without `seen` shared: 30, not 23.


def test_windows_too_small_for_full_batches_have_one_program_a_length():
    programs, num_buckets = count_programs(100, more_to_come=True)
    assert programs == num_buckets  # Where no more is said to come: 30, not 23.


def test_padding_is_at_most_three_percent_in_few_shapes():
    lengths = lengths_like_proteins(4000)
    # Compiling costs as much as 500 tokens: a large model on a CPU.
    buckets = batching.choose_buckets(lengths, 500.0)
    batches = list(batching.plan(lengths, buckets, 1024, compile_cost_tokens=500.0))
    assert sorted(i for batch in batches for i in batch.members) == list(range(4000))
    computed = sum(batch.tokens for batch in batches)
    assert 1 - lengths.sum() / computed <= 0.03
    assert len({(batch.rows, batch.length) for batch in batches}) <= 66


# Compile cost, and attention's share for each token of a row: models of 0.4, 8 and 420
# million parameters; then the most programs.
MODELS = [(100_000.0, 0.0037, 6), (6000.0, 0.0017, 64), (120.0, 0.0004, 96)]


@pytest.mark.parametrize(("compile_cost", "share", "most_programs"), MODELS)
def test_shared_rows_have_three_percent_padding_at_most(
    compile_cost, share, most_programs
):
    lengths = lengths_like_proteins(4000)
    buckets = batching.choose_shared(
        lengths, lambda n: n * (1 + share * n), compile_cost, 4096
    )
    seen: set[tuple[int, int]] = set()
    options = compile_cost, seen, False, True
    batches = list(batching.plan(lengths, buckets, 4096, None, None, *options))
    assert sorted(i for batch in batches for i in batch.members) == list(range(4000))
    assert 1 - lengths.sum() / sum(batch.tokens for batch in batches) <= 0.03
    assert len(seen) <= most_programs
    for batch in batches:
        taken = np.zeros((batch.rows, batch.length), int)
        for i, (row, start, stop) in zip(batch.members, batch.spans, strict=True):
            assert stop - start == lengths[i] and stop <= batch.length
            taken[row, start:stop] += 1
        assert taken.max() == 1


@pytest.mark.parametrize(("may_share_rows", "most"), [(False, 0.15), (True, 0.03)])
def test_padding_of_a_tiny_model_whether_or_not_rows_are_shared(
    encoder, may_share_rows, most
):
    """Compilation costs more: at 100,000 tokens, unshared rows have 28 % padding."""
    lengths = lengths_like_proteins(4000)
    runner = encoder.make_embedder(may_share_rows=may_share_rows)
    specials = runner.tokens.num_special
    work = runner.work([b"A" * int(n) for n in lengths], runner.buckets(lengths))
    computed = sum(item.batch.tokens for item in work)
    assert 1 - (lengths + specials).sum() / computed <= most


def test_small_job_is_one_row_and_peptides_share_long_rows():
    def choose(lengths):
        cost = 100_000.0
        return batching.choose_shared(lengths, lambda n: n * 1.0, cost, 4096).tolist()

    assert choose([21, 36, 59, 91, 132]) == [344]
    # 33 tokens would be padded to 40; 8 x 33 are 264.
    (length,) = choose([33] * 500)
    assert length >= 128
    assert choose([]) == []


def make_batch(members, spans, rows, length):
    spans = tuple(batching.Span(*span) for span in spans)
    return batching.Batch(members, spans, rows, length)


def test_halves_of_shared_rows_hold_the_same_sequences():
    whole = make_batch((4, 7, 1), [(0, 0, 30), (0, 30, 39), (2, 0, 5)], 3, 40)
    first, second = whole.halves(batching.round_up)
    assert first == make_batch((4, 7), [(0, 0, 30), (0, 30, 39)], 2, 40)
    assert second == make_batch((1,), [(0, 0, 5)], 2, 40)
    whole = make_batch((4, 7, 1), [(0, 0, 9), (0, 9, 41), (0, 41, 50)], 1, 50)
    first, second = whole.halves(batching.round_up)
    assert first == make_batch((4, 7), [(0, 0, 9), (0, 9, 41)], 1, 48)
    assert second == make_batch((1,), [(0, 0, 9)], 1, 16)


def test_packed_rows_hold_every_protein_once_and_all_but_the_last_are_full():
    lengths = lengths_like_proteins(4000)
    lengths[17] = 5000
    rows = list(batching.pack(lengths, 1024))
    assert sorted(i for row in rows for i in row.members) == list(range(4000))
    for row in rows:
        stops = np.cumsum([0, *lengths[list(row.members)]]).tolist()
        assert row.spans == tuple((0, *ends) for ends in itertools.pairwise(stops))
        assert row.tokens <= row.length and row.rows == 1
    longer = [row for row in rows if lengths[list(row.members)].max() > 1024]
    assert all(len(row.members) == 1 for row in longer)
    assert rows[0].members == (17,) and rows[0].length == 5024
    assert sum(row.length for row in rows) < 1.005 * lengths.sum()
    # In the end little is left that would fill a gap.
    assert len({row.length for row in rows if row not in longer}) <= 3
    assert rows == list(batching.pack(lengths.tolist(), 1024))


def test_packed_rows_have_few_lengths():
    one = {batching.packed_length(n, 4096) for n in range(1, 4097)}
    assert len(one) == 6 * 8 + 1 and max(one) == 4096 and min(one) == 64
    for n in range(65, 4097):
        length = batching.packed_length(n, 4096)
        assert n <= length <= n * 1.125 + 1


def test_packed_rows_respect_every_limit():
    lengths = [30] * 9 + [700]
    rows = batching.pack(lengths, 90, 2)
    assert [[lengths[i] for i in row.members] for row in rows] == [
        [700],
        *[[30, 30]] * 4,
        [30],
    ]
    # The model has positions for so many.
    rows = list(batching.pack([30] * 9, 4096, max_length=100))
    assert [row.tokens for row in rows] == [90] * 3
    assert {row.length for row in rows} == {96}
    assert next(batching.pack([100], 4096, max_length=100)).length == 100
    assert list(batching.pack([], 512)) == []


def test_halves_of_a_packed_row_have_about_half_its_tokens():
    def halves(*lengths):
        (row,) = batching.pack(lengths, 128)
        return row.halves(lambda tokens: batching.packed_length(tokens, 128))

    first, second = halves(50, 20, 20, 10)
    assert (len(first.members), len(second.members)) == (1, 3)
    assert (first.tokens, second.tokens) == (50, 50)
    # Never an empty one, whatever the first takes.
    assert [half.members for half in halves(90, 1)] == [(0,), (1,)]


def test_expensive_compilation_gives_few_buckets_and_cheap_compilation_many():
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
        buckets = batching.choose_buckets(lengths, each)
        assert cost(buckets.tolist(), each) == best


def test_plan_depends_only_on_lengths():
    lengths = lengths_like_proteins(500)
    buckets = batching.choose_buckets(lengths)
    first = list(batching.plan(lengths, buckets, 2048, 7))
    assert first == list(batching.plan(lengths.tolist(), buckets, 2048, 7))
    assert all(batch.rows <= 7 for batch in first)
    assert all(batch.rows * batch.length <= 2048 or batch.rows == 1 for batch in first)
    assert all(lengths[i] <= batch.length for batch in first for i in batch.members)


def test_empty_rows_are_computed_only_if_another_program_costs_more():
    buckets = np.array([10])

    def rows(number, cost, **more):
        batches = batching.plan(
            [10] * number, buckets, 40, compile_cost_tokens=cost, **more
        )
        return [batch.rows for batch in batches]

    # Seven of four a batch: one row of ten tokens stays empty.
    assert rows(7, 9) == [4, 3]
    assert rows(7, 10) == [4, 4]
    # No batch of four was there before: nothing is saved.
    assert rows(3, 1e9) == [3]
    # But there will be.
    assert rows(3, 10, more_to_come=True) == [4]
    assert rows(3, 9, more_to_come=True) == [3]


def test_no_sequences_give_no_batches():
    assert batching.choose_buckets(np.zeros(0, int)).size == 0
    assert list(batching.plan([], np.zeros(0, int), 512)) == []
