"""Speed of our training step against Hugging Face's in torch, on this CPU.

  python benchmarks/train_step_bench.py --family=t5 --precision=bf16 --write

All peers use the same proteins (the package's sample), corruption, sizes and precision;
a step is forward, backward and update. Each peer runs in its own process, loaded and
warmed up; they take turns (A B C A B C). Rates count residues of the encoder, without
padding.

Ours: packed rows of 512. torch: `padded`, one protein per row of 512, as ProtTrans
trained its models; `sorted`, batches with as many tokens, proteins sorted by length and
padded to the longest in the batch, the best option without packing. ProtTXL has no
peer: transformers has removed Transformer-XL.
"""

import argparse
import sys

import duel
import numpy as np
import step_peers


def make_batches(options: argparse.Namespace) -> dict[str, list[dict]]:
    """Batches of the sample's proteins, about rows * 512 tokens each, by kind."""
    from prottrans_jax import tasks  # noqa: F401
    from prottrans_jax.data.rows import loader

    length = step_peers.MAX_LENGTH
    lengths = {"inputs": length}
    if options.family == "t5":
        lengths["targets"] = length

    def rows(pack: bool, rows_per_batch: int, num_batches: int) -> list[dict]:
        data = loader.RowLoader(
            task=f"sample_{step_peers.TASKS[options.family]}",
            split="train",
            batch_size=rows_per_batch,
            feature_lengths=lengths,
            pack=pack,
            seed=0,
            long_sequences="crop",
        )
        return [data.batch(i) for i in range(num_batches)]

    segments = "encoder_segment_ids" if options.family == "t5" else "segment_ids"
    specials = 1 if options.family == "t5" else 2  # Special tokens per protein.

    def entry(features: dict[str, np.ndarray]) -> dict:
        used = features[segments]
        residues = int((used > 0).sum() - specials * used.max(axis=1).sum())
        return {"features": features, "residues": residues, "tokens": used.size}

    # Batches are drawn at random; best-fit-decreasing puts long proteins first.
    packed = rows(True, options.rows, options.batches)
    padded = rows(False, options.rows, options.batches)
    alone = {key: np.concatenate([b[key] for b in padded]) for key in padded[0]}
    sizes = (alone[segments] > 0).sum(axis=1)
    groups: list[list[int]] = [[]]
    for i in np.argsort(-sizes, kind="stable"):
        longest = sizes[groups[-1][0]] if groups[-1] else sizes[i]
        if longest * (len(groups[-1]) + 1) > options.rows * length:
            groups.append([])
        groups[-1].append(i)
    if len(groups) > 1:
        groups.pop()  # An incomplete batch.
    # Shuffled, so that a few batches represent all lengths.
    mixed = np.random.default_rng(2).permutation(len(groups))
    by_length = [
        {
            key: values[groups[g]][:, : sizes[groups[g][0]]]
            for key, values in alone.items()
        }
        for g in mixed
    ]
    return {
        "packed": [entry(b) for b in packed],
        "padded": [entry(b) for b in padded],
        "sorted": [entry(b) for b in by_length],
    }


def compare(options: argparse.Namespace) -> dict[str, list[dict]]:
    """Runs the rounds; returns the figures of each lane by round."""
    arguments = [__file__]
    for name in ("family", "precision", "dropout", "rows", "microbatches", "batches"):
        arguments.append(f"--{name}={getattr(options, name)}")
    torch_arguments = [*arguments, f"--attention={options.attention}", "--worker=torch"]
    if options.compile:
        torch_arguments.append("--compile")
    arguments.append("--worker=ours")
    if options.scan_layers:
        arguments.append("--scan_layers")
    # Two processes for torch, to measure the peak memory of each kind.
    lanes = {
        "ours, packed": duel.Lane("packed", duel.Worker(arguments)),
        "torch, padded": duel.Lane("padded", duel.Worker(torch_arguments)),
        "torch, sorted": duel.Lane("sorted", duel.Worker(torch_arguments)),
    }
    return duel.take_turns(lanes, options.rounds, options.warmup, options.patience)


def main() -> None:
    """Runs the comparison; with --write, records it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=tuple(step_peers.TASKS), default="t5")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch of ours")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--scan_layers", action="store_true")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds to wait for a quiet moment"
    )
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--worker", choices=("ours", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        peer = step_peers.Ours if options.worker == "ours" else step_peers.Torch
        batches = make_batches(options)
        duel.serve(peer(options), batches)
        return
    results = compare(options)
    body = duel.table(results, "ours, packed")
    print(body)
    if options.write:
        import report

        about = ", ".join(
            sorted({f["about"] for figures in results.values() for f in figures})
        )
        sizes = step_peers.SIZES
        layers = step_peers.LAYERS
        stacks = f"{layers} + {layers}" if options.family == "t5" else f"{layers}"
        optimizer = "Adafactor" if options.family == "t5" else "AdamW"
        command = " ".join(a for a in sys.argv[1:] if a != "--write")
        report.replace_section(
            f"Training step, {options.family}, {options.precision}, "
            f"dropout {options.dropout:g}",
            f"{body}\n{stacks} layers, d_model {sizes['d_model']}, d_ff "
            f"{sizes['d_ff']}, {sizes['num_heads']} heads; batches of {options.rows} * "
            f"{step_peers.MAX_LENGTH} tokens, {optimizer}; {options.rounds} rounds in "
            f"turns. torch with {options.attention} attention"
            f"{', compiled' if options.compile else ''}. {about}; {report.machine()}. "
            "`other processes`: share of the machine that they took meanwhile.\n\n"
            f"`python benchmarks/train_step_bench.py {command} --write`",
        )


if __name__ == "__main__":
    main()
