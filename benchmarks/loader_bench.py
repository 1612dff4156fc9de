"""Tokens/s of the host pipeline: row loader against plain `seqio.get_dataset`.

  python benchmarks/loader_bench.py --data_dir=FOLDER_MADE_BY_PREPARE [--write]

Counts tokens that are not padding, in packed rows of 512 inputs and 512 targets with
ProtT5's corruption. Both take turns (A B A B) in one process; results are medians of
rounds. The SeqIO pipeline follows the T5 library: everything in TensorFlow, records
from the same files, SeqIO's packing, any number of threads.
"""

import argparse
import concurrent.futures
import os
import statistics
import time

import report
import seqio
import tensorflow as tf

from prottrans_jax.data.records import corpora
from prottrans_jax.data.rows import loader as loader_lib
from prottrans_jax.data.seqio import byte_vocabulary, preprocessors, record_source
from prottrans_jax.proteins import vocabulary
import prottrans_jax.tasks  # noqa: F401 (registers tasks)

LENGTHS = {"inputs": 512, "targets": 512}
BATCH = 128


class RowsByLoader:
    """A: `RowLoader.batch`, several batches at a time."""

    def __init__(self, loader, workers):
        self.loader = loader
        self.workers = workers
        self.next = 0
        self.pool = concurrent.futures.ThreadPoolExecutor(workers)

    def batches(self):
        """Yields batches in order, without end."""
        waiting = []
        while True:
            while len(waiting) < 2 * self.workers:
                waiting.append(self.pool.submit(self.loader.batch, self.next))
                self.next += 1
            yield waiting.pop(0).result()


def _t5_iid_denoise(dataset, output_features):
    """noise_token_to_random_token_or_sentinel of the T5 library, as one graph."""
    eos = tf.constant([output_features["targets"].vocabulary.eos_id])

    @seqio.map_over_dataset(num_seeds=3)
    def corrupt(example, seeds):
        tokens = example["targets"]
        draw = [tf.random.stateless_uniform(tf.shape(tokens), s) for s in seeds[:2]]
        random = tf.random.stateless_uniform(
            tf.shape(tokens), seeds[2], minval=3, maxval=128, dtype=tf.int32
        )
        noise = tf.where(draw[1] < 0.1, random, 127)
        inputs = tf.where(draw[0] < 0.15, noise, tokens)
        return {
            "inputs": tf.concat([inputs[:511], eos], 0),
            "targets": tf.concat([tokens[:511], eos], 0),
        }

    return corrupt(dataset)


def rows_by_seqio(data_dir):
    """B: seqio.get_dataset with SeqIO's own encoder-decoder converter."""
    os.environ[corpora.DATA_DIR] = data_dir
    task = seqio.Task(
        "bench_seqio",
        source=record_source.RecordSource("fasta"),
        preprocessors=[preprocessors.Tokenize(), _t5_iid_denoise],
        output_features={
            name: seqio.Feature(byte_vocabulary.ByteTableVocabulary(vocabulary.PROT_T5))
            for name in ("inputs", "targets")
        },
    )
    dataset = seqio.get_dataset(
        task,
        LENGTHS,
        seqio.EncDecFeatureConverter(pack=True),
        shuffle=True,
        seed=1,
        num_epochs=None,
    )
    return dataset.batch(BATCH).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def one_round(batches, seconds):
    """Encoder and decoder tokens/s, and the filled share of the encoder's rows."""
    encoder = decoder = places = 0
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        batch = next(batches)
        encoder += int((batch["encoder_segment_ids"] > 0).sum())
        decoder += int((batch["decoder_segment_ids"] > 0).sum())
        places += batch["encoder_segment_ids"].size
    elapsed = time.perf_counter() - start
    return encoder / elapsed, decoder / elapsed, encoder / places


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--objective", default="iid_denoise")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    args = parser.parse_args()

    by_loader = loader_lib.RowLoader(
        f"fasta_{args.objective}",
        batch_size=BATCH,
        feature_lengths=LENGTHS,
        data_dir=args.data_dir,
    )
    sides = {
        "RowLoader, 1 thread": RowsByLoader(by_loader, 1).batches(),
        f"RowLoader, {args.workers} threads": RowsByLoader(
            by_loader, args.workers
        ).batches(),
        "seqio.get_dataset": rows_by_seqio(args.data_dir),
    }
    for batches in sides.values():
        next(batches)
        one_round(batches, 1.0)
    rounds = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, batches in sides.items():
            rounds[name].append(one_round(batches, args.seconds))
    lines = [
        "| pipeline | encoder tokens/s | encoder + decoder tokens/s | rows filled |",
        "|---|---|---|---|",
    ]
    speeds = {}
    for name, measured in rounds.items():
        encoder, decoder, fill = (
            statistics.median(m) for m in zip(*measured, strict=True)
        )
        speeds[name] = encoder
        lines.append(
            f"| {name} | {encoder:,.0f} | {encoder + decoder:,.0f} | {fill:.2%} |"
        )
    *loader_speeds, seqio_speed = speeds.values()
    summary = by_loader.describe()
    lines += [
        "",
        f"{summary['residue_fill']:.2%} of the row loader's encoder tokens are "
        f"residues, the rest </s> and padding ({summary['records']:,} records, "
        f"{summary['residues']:,} residues, sequences over 511 residues split).",
        "",
        f"Ratio: {loader_speeds[0] / seqio_speed:.1f} with one thread, "
        f"{loader_speeds[1] / seqio_speed:.1f} with {args.workers}. "
        f"{args.rounds} rounds of {args.seconds:g} s each, in turns; "
        f"objective {args.objective}; {report.machine()}.",
        "",
        "`python benchmarks/loader_bench.py --data_dir=CORPUS --write`",
    ]
    report.finish("Host pipeline", lines, args.write)


if __name__ == "__main__":
    main()
