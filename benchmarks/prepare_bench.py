"""Speed of `prepare` against Biopython + TFRecords, on one core, in turns.

  python benchmarks/prepare_bench.py FASTA [FASTA ...]

The naive program parses with Bio.SeqIO and writes one tf.train.Example per record,
without checks, shuffling, removal of duplicates, checksums or index. `prepare` does all
of these.
"""

import argparse
from collections.abc import Callable
import gzip
import os
import pathlib
import statistics
import sys
import tempfile
import time

from Bio import SeqIO
import report
import tensorflow as tf

import prottrans_jax
from prottrans_jax.data.records import input_sources, preparing


def naive(paths: list[str], folder: pathlib.Path) -> None:
    with tf.io.TFRecordWriter(str(folder / "naive.tfrecord")) as writer:
        for path in paths:
            opener = gzip.open if path.endswith(".gz") else open
            with opener(path, "rt") as handle:
                for record in SeqIO.parse(handle, "fasta"):
                    feature = {
                        "id": _bytes(record.id.encode()),
                        "sequence": _bytes(str(record.seq).encode()),
                    }
                    example = tf.train.Example(
                        features=tf.train.Features(feature=feature)
                    )
                    writer.write(example.SerializeToString())


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def ours(paths: list[str], folder: pathlib.Path) -> preparing.Report:
    return preparing.prepare(
        [input_sources.of_fasta(path) for path in paths],
        folder / "ours",
        name="benchmark",
        overwrite=True,
    )


def timed(way: Callable, paths: list[str], folder: pathlib.Path) -> float:
    """CPU seconds, which hardly depend on other load of the machine."""
    start = time.process_time()
    way(paths, folder)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("fasta", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        done = ours(args.fasta, folder)  # Also warms the page cache.
        seconds: dict[str, list[float]] = {"naive": [], "ours": []}
        for _ in range(args.rounds):
            seconds["naive"].append(timed(naive, args.fasta, folder))
            seconds["ours"].append(timed(ours, args.fasta, folder))
        sizes = {
            "naive": (folder / "naive.tfrecord").stat().st_size,
            "ours": sum(p.stat().st_size for p in (folder / "ours").iterdir()),
        }
    ratios = [a / b for a, b in zip(seconds["naive"], seconds["ours"], strict=True)]
    names = {"naive": "Bio.SeqIO + TFRecord", "ours": "prottrans_jax.prepare"}
    rows = []
    for way, label in names.items():
        cpu = statistics.median(seconds[way])
        rows.append(
            [
                label,
                f"{cpu:.2f}",
                f"{done.records_read / cpu:,.0f}",
                f"{done.residues_read / cpu:,.0f}",
                f"{sizes[way] / 1e6:.1f}",
            ]
        )
    header = ["way", "CPU s (median)", "records/s", "residues/s", "MB written"]
    shown = " ".join(pathlib.Path(p).name for p in args.fasta)
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    median = statistics.median(ratios)
    body = f"""\
One core, in turns, {args.rounds} rounds: **{median:.2f} times** the naive way per \
core (rounds: {", ".join(f"{r:.2f}" for r in ratios)}).

{table}

`python benchmarks/prepare_bench.py {shown}` ({done.records_read:,} records, \
{done.residues_read:,} residues). prottrans_jax {prottrans_jax.__version__}, \
TensorFlow {tf.__version__}; {report.machine()}."""
    print(body)
    report.replace_section("Preparing data", body)
    if median < 2:
        sys.exit("below the promised factor of 2")


if __name__ == "__main__":
    main()
