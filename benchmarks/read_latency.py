"""Time to load a host's rows from many shards on storage with slow reads.

  python benchmarks/read_latency.py [--write]

Makes a folder of 500 shards and opens it with readers that wait before every read and
every open, as on a network file system. "one after another" lets only one reader wait
at a time; "side by side" is `RowLoader` without this restriction. Both read the same
batches.
"""

import argparse
import pathlib
import statistics
import tempfile
import threading
import time

import numpy as np
import report
import seqio

from prottrans_jax.data.records import shard_readers, store
from prottrans_jax.data.rows import loader as loader_lib
from prottrans_jax.data.seqio import preprocessors, record_source

LENGTHS = {"inputs": 512, "targets": 512}
RECORDS_A_SHARD = 128


class SlowSource(record_source.RecordSource):
    """A folder whose shards take `seconds` for opening and for every read."""

    def __init__(self, folder, seconds, lock):
        super().__init__("fasta")
        self._folder = folder
        self._seconds = seconds
        self._lock = lock

    def open(self, data_dir=None):
        """Opens the folder; ignores `data_dir`."""
        del data_dir
        return store.open(self._folder, open_reader=self._slow)

    def _wait(self):
        if self._lock is None:
            time.sleep(self._seconds)
            return
        with self._lock:
            time.sleep(self._seconds)

    def _slow(self, path):
        self._wait()
        outer, reader = self, shard_readers.open_array_record(path)

        class Slow:
            num_records = staticmethod(reader.num_records)

            @staticmethod
            def read(indices):
                outer._wait()
                return reader.read(indices)

        return Slow()


def make(folder, shards):
    """Proteins of 50 to 699 residues."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    with store.Writer(folder, name="many") as writer:
        for shard in range(shards):
            lengths = rng.integers(50, 700, RECORDS_A_SHARD).tolist()
            writer.add_shard(
                "train",
                [
                    (f"P{shard}_{i}", rng.choice(letters, n).tobytes())
                    for i, n in enumerate(lengths)
                ],
            )


def measure(folder, seconds, lock, args):
    """Median seconds of a batch, without the first, which also plans the rows."""
    corrupt = preprocessors.iid_denoise()
    task = seqio.Task(
        "slow",
        source=SlowSource(folder, seconds, lock),
        preprocessors=preprocessors.pretraining(corrupt),
        output_features=preprocessors.output_features(corrupt),
    )
    loader = loader_lib.RowLoader(task, batch_size=4096, feature_lengths=LENGTHS)
    durations = []
    for batch in range(args.batches + 1):
        started = time.perf_counter()
        loader.batch(batch, rows=slice(0, args.rows))
        durations.append(time.perf_counter() - started)
    return statistics.median(durations[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=500)
    parser.add_argument("--rows", type=int, default=32, help="of one host")
    parser.add_argument("--latency_ms", type=float, default=50.0)
    parser.add_argument("--batches", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place) / "many"
        make(folder, args.shards)
        lines = [
            "| wait before each read and open | one after another | side by side |",
            "|---|---|---|",
        ]
        for milliseconds in (0.0, args.latency_ms):
            one, many = (
                measure(folder, milliseconds / 1000, lock, args)
                for lock in (threading.Lock(), None)
            )
            lines.append(f"| {milliseconds:g} ms | {one:.3f} s | {many:.3f} s |")
    lines += [
        "",
        f"{args.rows} rows of a batch of 4,096, {args.shards} shards, median of "
        f"{args.batches} batches; {report.machine()}.",
        "",
        "`python benchmarks/read_latency.py --write`",
    ]
    report.finish("Records in many shards, slow reads", lines, args.write)


if __name__ == "__main__":
    main()
