"""`prepare` keeps every record once and names what it leaves out; all or nothing."""

import gzip
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cases import record_cases
from prottrans_jax.data.records import corpora, input_sources, preparing, store
from prottrans_jax.proteins import fasta_problems, nucleotides, unpacking

LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)


def random_proteins(count: int, seed: int = 0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 300, count)
    return {
        f"P{i:04d}": rng.choice(LETTERS, n).tobytes() for i, n in enumerate(lengths)
    }


def write(path: pathlib.Path, proteins) -> str:
    items = proteins.items() if isinstance(proteins, dict) else proteins
    path.write_bytes(b"".join(b">%b x\n%b\n" % (n.encode(), s) for n, s in items))
    return str(path)


def run(inputs, output, validation=(), overwrite=False, **options):
    sources = [input_sources.of_fasta(p) for p in inputs]
    sources += [input_sources.of_fasta(p, "validation") for p in validation]
    return preparing.prepare(
        sources,
        output,
        name="toy",
        options=preparing.Options(**options),
        overwrite=overwrite,
    )


def content(folder, split="train"):
    opened = store.open(folder)
    if split not in opened.manifest.splits:
        return []
    return list(record_cases.iterate(opened.split(split)))


PROTEINS = random_proteins(600)


@pytest.fixture
def toy(tmp_path):
    return write(tmp_path / "toy.fasta", PROTEINS)


def test_every_record_is_kept_once_in_one_of_the_splits(toy, tmp_path):
    report = run([toy], tmp_path / "out", validation_fraction=0.1, num_shards=3)
    train, validation = (content(tmp_path / "out", s) for s in ("train", "validation"))
    assert len(train) + len(validation) == 600
    assert dict(train + validation) == PROTEINS
    assert 30 <= len(validation) <= 90
    assert report.records_read == 600 and not report.skipped
    manifest = report.manifest
    assert manifest == store.open(tmp_path / "out").manifest
    assert store.verify(tmp_path / "out") == []
    assert len(manifest.splits["train"].shards) == 3
    [source] = manifest.inputs
    assert source["num_records"] == 600
    sha256 = subprocess.check_output(["sha256sum", toy], text=True).split()[0]
    assert source["sha256"] == sha256


def test_records_are_shuffled_over_all_shards_by_the_seed(toy, tmp_path):
    orders = {}
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        run([toy], tmp_path / name, num_shards=4, seed=seed, validation_fraction=0)
        orders[name] = [n for n, _ in content(tmp_path / name)]
    assert orders["a"] == orders["b"] != orders["c"]
    assert sorted(orders["a"]) == sorted(orders["c"]) == sorted(PROTEINS)
    for order in orders.values():
        places = np.array([int(n[1:]) for n in order])
        # Of 600 random places: no correlation with the input, over three sigmas.
        assert abs(np.corrcoef(places, np.arange(600))[0, 1]) < 0.13
        # Each quarter of the input is spread over each quarter of the output.
        table = np.histogram2d(places, np.arange(600), bins=4)[0]
        assert table.min() > 20


def test_without_shuffle_the_order_is_that_of_the_input(toy, tmp_path):
    more = random_proteins(100, seed=5)
    second = write(tmp_path / "b.fasta", {f"Q{n}": s for n, s in more.items()})
    run([toy, second], tmp_path / "out", shuffle=False, num_shards=3)
    train, validation = (content(tmp_path / "out", s) for s in ("train", "validation"))
    everything = [*PROTEINS.items(), *((f"Q{n}", s) for n, s in more.items())]
    held_out = {n for n, _ in validation}
    assert train == [item for item in everything if item[0] not in held_out]
    assert validation == [item for item in everything if item[0] in held_out]


@pytest.mark.parametrize("shuffle", [True, False])
def test_blocks_and_processes_do_not_change_a_byte(toy, tmp_path, monkeypatch, shuffle):
    options = dict(num_shards=3, shuffle=shuffle, validation_fraction=0.05)
    run([toy], tmp_path / "a", **options)
    monkeypatch.setattr(unpacking, "READ_BYTES", 1000)
    monkeypatch.setattr(preparing, "MIN_BLOCK_BYTES", 5000)
    run([toy], tmp_path / "b", **options)
    monkeypatch.setattr(preparing, "SHARD_BYTES", 10)  # Not too small for processes.
    run([toy], tmp_path / "c", num_processes=2, **options)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    for name in files:
        expected = (tmp_path / "a" / name).read_bytes()
        assert (tmp_path / "b" / name).read_bytes() == expected
        assert (tmp_path / "c" / name).read_bytes() == expected


def test_a_protein_stays_in_its_split_when_others_join(toy, tmp_path):
    run([toy], tmp_path / "a", validation_fraction=0.2)
    more = write(tmp_path / "b.fasta", {"Q" + n: s[::-1] for n, s in PROTEINS.items()})
    run([more, toy], tmp_path / "b", validation_fraction=0.2, num_shards=2, seed=3)
    before = {n for n, _ in content(tmp_path / "a", "validation")}
    after = {n for n, _ in content(tmp_path / "b", "validation")}
    assert before == after & set(PROTEINS)


def test_only_the_first_of_equal_sequences_is_kept(tmp_path):
    copies = [("a", b"MKV"), ("b", b"ACD"), ("c", b"mkv"), ("d", b"MKV"), ("e", b"WWW")]
    path = write(tmp_path / "x.fasta", copies)
    report = run([path], tmp_path / "out", num_shards=2, validation_fraction=0)
    assert sorted(n for n, _ in content(tmp_path / "out")) == ["a", "b", "e"]
    assert report.manifest.skipped == {"exact duplicate of another sequence": 2}
    assert report.num_bad == 0
    run([path], tmp_path / "all", deduplicate=False, validation_fraction=0)
    assert sorted(n for n, _ in content(tmp_path / "all")) == list("abcde")


def test_a_sequence_of_the_validation_files_is_not_trained_on(toy, tmp_path):
    stolen = {f"V{n}": PROTEINS[n] for n in list(PROTEINS)[::10]}
    validation = write(tmp_path / "valid.fasta", stolen)
    report = run([toy], tmp_path / "out", validation=[validation])
    assert dict(content(tmp_path / "out", "validation")) == stolen
    assert len(content(tmp_path / "out")) == 540
    assert report.manifest.skipped == {HELD_OUT: 60}
    assert report.num_bad == 0
    rows = (tmp_path / "out/skipped.tsv").read_text().splitlines()[1:]
    assert {row.split("\t")[1] for row in rows} == set(list(PROTEINS)[::10])


HELD_OUT = "same sequence as a record of another split, which is not trained on"


@pytest.mark.parametrize("shuffle", [True, False])
def test_kept_copies_share_the_split_of_their_first_record(toy, tmp_path, shuffle):
    options = dict(validation_fraction=0.3, num_shards=3, shuffle=shuffle)
    run([toy], tmp_path / "plain", **options)
    # Cleaned, they are the same: letter case and gaps do not count.
    copies = {f"C{n}": b"-" + s.lower() for n, s in list(PROTEINS.items())[:200]}
    more = write(tmp_path / "copies.fasta", copies)
    report = run([toy, more], tmp_path / "out", deduplicate=False, **options)
    train, validation = (content(tmp_path / "out", s) for s in ("train", "validation"))
    assert len(train) + len(validation) == 800
    assert not {s for _, s in train} & {s for _, s in validation}
    # Records without copies, and first ones, are where they always were.
    first = [item for item in validation if not item[0].startswith("C")]
    assert first == content(tmp_path / "plain", "validation")
    # Of 200 pairs of ids, 2 x 0.3 x 0.7 would be parted.
    assert 60 < report.manifest.moved_copies < 110
    assert store.open(tmp_path / "out").manifest.moved_copies > 0


def test_kept_copies_of_the_validation_files_are_not_trained_on(toy, tmp_path):
    items = list(PROTEINS.items())
    # One with the same id, one with another, two copies in the file itself.
    held_out = [items[0], ("V1", items[1][1].lower()), ("V2", b"MKV"), ("V3", b"MKV")]
    validation = write(tmp_path / "valid.fasta", held_out)
    report = run([toy], tmp_path / "out", validation=[validation], deduplicate=False)
    assert len(content(tmp_path / "out", "validation")) == 4
    assert dict(content(tmp_path / "out")) == dict(items[2:])
    assert report.manifest.skipped == {HELD_OUT: 2}


def test_a_sequence_of_a_test_split_is_not_trained_on(tmp_path):
    made = {
        "train": [("a", b"MKV"), ("b", b"ACD"), ("c", b"WWW")],
        "validation": [("d", b"ACD")],
        "test": [("e", b"MKV"), ("f", b"ACD"), ("g", b"YYY")],
    }
    sources = [input_sources.of_examples(f"mine/{s}", made[s], s) for s in made]
    report = preparing.prepare(sources, tmp_path / "out", name="x")
    kept = {s: {n for n, _ in content(tmp_path / "out", s)} for s in made}
    assert kept == {"train": {"c"}, "validation": {"d"}, "test": {"e", "g"}}
    assert report.manifest.skipped == {HELD_OUT: 3}


def test_the_command_reports_removed_and_moved_copies(toy, tmp_path):
    copies = write(tmp_path / "copies.fasta", {f"C{n}": s for n, s in PROTEINS.items()})
    held_out = write(tmp_path / "v.fasta", {"V": PROTEINS["P0007"]})
    for extra, line in [
        (["--nodeduplicate", "--validation_fraction=0.5"], "Moved "),
        ([f"--validation_input={held_out}"], f"Left out 2: {HELD_OUT}, e.g. {toy}:15"),
    ]:
        done = command(
            f"--input={toy},{copies}",
            f"--output={tmp_path / line[:4]}",
            "--num_processes=1",
            *extra,
        )
        assert done.returncode == 0, done.stderr
        assert line in done.stdout


def test_lengths_outside_the_limits_are_left_out_and_named(toy, tmp_path):
    report = run([toy], tmp_path / "out", min_length=50, max_length=200)
    lengths = {n: len(s) for n, s in PROTEINS.items()}
    kept = {n for s in ("train", "validation") for n, _ in content(tmp_path / "out", s)}
    assert kept == {n for n, k in lengths.items() if 50 <= k <= 200}
    assert report.manifest.skipped == {
        "shorter than --min_length": sum(k < 50 for k in lengths.values()),
        "longer than --max_length": sum(k > 200 for k in lengths.values()),
    }
    rows = (tmp_path / "out/skipped.tsv").read_text().splitlines()[1:]
    assert {row.split("\t")[1] for row in rows} == set(PROTEINS) - kept
    first = list(lengths).index(rows[0].split("\t")[1])
    assert rows[0].split("\t")[0] == f"{toy}:{2 * first + 1}"


def test_one_id_for_two_sequences_is_an_error_with_both_places(tmp_path):
    first = write(tmp_path / "a.fasta", [("x", b"MKV"), ("y", b"ACD")])
    second = write(tmp_path / "b.fasta", [("z", b"WWW"), ("y", b"MMM"), ("x", b"MKV")])
    with pytest.raises(fasta_problems.FastaError) as error:
        run([first, second], tmp_path / "out", num_shards=3)
    assert f"{second}:3: id 'y' has another sequence" in str(error.value)
    assert f"{first}:3" in str(error.value)
    assert not (tmp_path / "out").exists()
    report = run([first, second], tmp_path / "out", num_shards=3, on_bad="skip")
    both = content(tmp_path / "out") + content(tmp_path / "out", "validation")
    assert dict(both) == {"x": b"MKV", "y": b"ACD", "z": b"WWW"}
    assert {why: n for why, (n, _) in report.skipped.items()} == {
        "id used for two sequences": 1,
        "repeated record (same id, same sequence)": 1,
    }
    assert report.num_bad == 1


def test_the_same_file_twice_changes_nothing(toy, tmp_path):
    run([toy], tmp_path / "a", deduplicate=False)
    report = run([toy, toy], tmp_path / "b", deduplicate=False)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert report.skipped["repeated record (same id, same sequence)"][0] == 600


MESSY = {  # Records in the folder under on_bad="skip"; None: nothing is left.
    "blank_lines_tabs.fasta": 5, "bom_no_final_newline.fasta": 5, "cr_only.fasta": 5,
    "crlf.fasta": 5, "dna_by_mistake.fasta": 1, "duplicate_ids.fasta": 2,
    "empty.fasta": None, "gz_without_suffix.fasta": 5, "header_only.fasta": None,
    "illegal_amino_acids.fasta": 3, "latin1_header.fasta": None,
    "length_edges.fasta": 13, "mixed_problems.fasta": 8, "multi_member.fasta.gz": 5,
    "no_header_first.fasta": 5, "odd_ids.fasta": 4, "ok.fasta.gz": 5,
    "only_newlines.fasta": None, "openfold_6KWC_head.a3m": 60,
    "plain_with_gz_suffix.fasta.gz": 5, "rare_residues.fasta": 20,
    "semicolon_comments.fasta": 5, "seqwence-protein.fasta": 2,
    "titin_twice.fasta.gz": 1, "truncated.fasta.gz": 4, "unparsable.fasta": 2,
    "utf8_header.fasta": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", MESSY)
def test_records_that_remain_of_each_damaged_file(shared, tmp_path, name):
    path = str(shared / "data/messy" / name)
    options = dict(validation_fraction=0, on_bad="skip")
    if name == "dna_by_mistake.fasta":
        with pytest.raises(nucleotides.NucleotidesError, match=re.escape(path)):
            run([path], tmp_path / "out", **options)
        assert list(tmp_path.iterdir()) == []
        options["allow_nucleotides"] = True
    if MESSY[name] is None:
        with pytest.raises(ValueError, match="no records are left"):
            run([path], tmp_path / "out", **options)
        assert list(tmp_path.iterdir()) == []
        return
    report = run([path], tmp_path / "out", **options)
    assert len(content(tmp_path / "out")) == MESSY[name]
    rows = 0
    if report.skipped:
        rows = len((tmp_path / "out/skipped.tsv").read_text().splitlines()) - 1
    assert rows == sum(n for n, _ in report.skipped.values())


def test_one_record_of_nucleotides_is_a_bad_record(tmp_path):
    proteins = dict(list(PROTEINS.items())[:20]) | {"GENE": b"ATGGCC" * 12}
    path = write(tmp_path / "x.fasta", proteins)
    with pytest.raises(
        fasta_problems.FastaError, match="'GENE' are A, C, G, T, U or N"
    ):
        run([path], tmp_path / "out")
    report = run([path], tmp_path / "out", on_bad="skip")
    assert report.num_bad == 1 and report.manifest.skipped == {"nucleotides": 1}
    report = run([path], tmp_path / "all", allow_nucleotides=True)
    assert report.records_read == 21 and not report.skipped


def test_records_of_x_alone_are_counted(tmp_path):
    path = write(tmp_path / "x.fasta", {"a": b"XXXX", "b": b"MKX", "c": b"XUB"})
    assert run([path], tmp_path / "out").num_only_x == 2


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(validation_fraction=1.0), r"validation_fraction=1.0 is not in \[0, 1\)"),
        (dict(min_length=10, max_length=9), "nothing would be left"),
        (dict(num_shards=0), "num_shards=0"),
        (dict(on_bad="shrug"), "on_bad=shrug"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        preparing.Options(**options)


def command(*args: str, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "prottrans_jax.prepare", *args],
        capture_output=True,
        text=True,
        timeout=300,
        **kwargs,
    )


def test_the_command_reads_standard_input_and_verifies(toy, tmp_path):
    data = gzip.compress(pathlib.Path(toy).read_bytes())
    output = tmp_path / "out"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "prottrans_jax.prepare"),
            *("--input=-", f"--output={output}", "--num_processes=1"),
        ],
        input=data,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert b"Read 600 records with " in done.stdout
    assert b" records/s, " in done.stdout and b" residues/s" in done.stdout
    assert command(f"--verify={output}").returncode == 0
    shard = output / "train-00000-of-00001.array_record"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 4
    shard.write_bytes(data)
    damaged = command(f"--verify={output}")
    assert damaged.returncode == 3 and str(shard) in damaged.stdout
    (output / "manifest.json").write_text("{")
    damaged = command(f"--verify={output}")
    assert damaged.returncode == 3 and "manifest.json is damaged" in damaged.stdout
    assert "Traceback" not in damaged.stderr


def test_mistakes_get_a_sentence_and_no_traceback(tmp_path):
    bad = tmp_path / "bad.fasta"
    bad.write_bytes(b">a\nMKV\n>b\nM1V\n")
    dna = tmp_path / "dna.fasta"
    dna.write_bytes(b">a\n" + b"ACGT" * 20 + b"\n>b\nGATTACA\n")
    output = f"--output={tmp_path / 'out'}"
    for args, status, message in [
        ([f"--input={bad}", output], 1, f"{bad}:4: '1' at column 2 of record 'b'"),
        ([f"--input={bad}", output, "--on_bad=skip"], 3, ""),
        ([f"--input={bad}", output, "--on_bad=skip"], 1, "--overwrite"),
        ([output], 2, "give one of --input"),
        ([f"--input={dna}", "--output=x", "--on_bad=skip"], 2, "--allow_nucleotides"),
        ([f"--input={bad}"], 2, "--output is missing"),
        (["--input=nowhere.fa", output, "--overwrite"], 1, "nowhere.fa"),
        ([f"--input={bad}", "--output=/proc/x/y"], 1, "cannot write to"),
    ]:
        done = command(*args)
        assert done.returncode == status, (args, done.stderr)
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_leaves_no_folder_and_can_be_repeated(tmp_path, sign):
    path = write(tmp_path / "big.fasta", random_proteins(30_000))
    args = [f"--input={path}", f"--output={tmp_path / 'out'}", "--num_processes=1"]
    process = subprocess.Popen([sys.executable, "-m", "prottrans_jax.prepare", *args])
    partial = tmp_path / "out.partial"
    while not partial.exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(sign)
    assert process.wait() == (-sign if sign == signal.SIGKILL else 143)
    assert not (tmp_path / "out").exists()
    assert partial.exists() == (sign == signal.SIGKILL)
    run([path], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.fasta", "out"]


def test_the_shipped_sample_is_sound():
    folder = corpora.sample_dir()
    assert store.verify(folder) == []
    train, validation = (content(folder, s) for s in ("train", "validation"))
    assert len(train) >= 4000 and len(validation) >= 400
    assert not {s for _, s in train} & {s for _, s in validation}
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 2_000_000
    assert "CC BY 4.0" in (folder / "ATTRIBUTION").read_text()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path):
    """Peak resident memory of 30 and of 240 MB of FASTA in shards of one size."""
    # Not getrusage: a child's ru_maxrss begins with that of the process it came from.
    script = (
        "import re, sys; from prottrans_jax.data.records import "
        "input_sources, preparing;"
        "preparing.prepare([input_sources.of_fasta(sys.argv[1])], sys.argv[2],"
        "name='x', options=preparing.Options(num_shards=int(sys.argv[3])));"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    peaks = []
    for times in (1, 8):
        path = tmp_path / f"{times}.fasta"
        with path.open("wb") as out:
            for part in range(times):
                proteins = random_proteins(180_000, seed=part)
                for name, sequence in proteins.items():
                    out.write(b">%d%b\n%b\n" % (part, name.encode(), sequence))
        out = subprocess.check_output(
            [
                sys.executable,
                "-c",
                script,
                path,
                tmp_path / f"out{times}",
                f"{4 * times}",
            ],
            env=os.environ,
        )
        peaks.append(int(out) / 1024)
    assert peaks[1] < peaks[0] * 1.1 + 20, peaks  # MiB
