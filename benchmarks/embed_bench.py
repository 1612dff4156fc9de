"""Speed of embedding real proteins: ours against torch, on this CPU or GPU.

  python benchmarks/embed_bench.py --fasta=PROTEOME.fasta.gz --models=DIR --write

Each peer runs in its own process with the same random weights, loaded and warmed up.
Ours and one peer at a time take turns (A B A B) with the same proteins. The proteins of
a round are neighbours in the proteome sorted by length: one batch of `prott5_embedder`
(or its first proteins, --residues), at evenly spaced quantiles of the residues. On a
GPU they are every n-th protein, about --residues in all. Each peer makes its own
batches and returns a float32 array for each protein. Rates are in residues/s. Cosines
compare each residue's vector with ours.

Peers: eager, sdpa (transformers in batches of 1,000 padded residues, 16,384 on a GPU),
compiled (torch.compile with TORCHINDUCTOR_FREEZING=1), int8 (torch's dynamic
quantisation), and prott5_embedder: ProtTrans's script with its defaults, in float32 on
a CPU and float16 on a GPU.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import duel
import embed_peers
import numpy as np

PEERS = {
    "bf16": "eager-bf16,sdpa-bf16,compiled-bf16,int8,prott5_embedder",
    "int8": "int8,compiled-bf16,prott5_embedder",
    "f32": "eager-f32,sdpa-f32,compiled-f32,int8,prott5_embedder",
}
GPU_PEERS = {
    "bf16": "sdpa-bf16,prott5_embedder",
    "int8": "sdpa-bf16",
    "f32": "sdpa-f32",
}
_COLD_RESIDUES = 300


def choose_rounds(sequences: list[str], options: argparse.Namespace) -> list[list[str]]:
    """One batch of `prott5_embedder` per round, at even quantiles of the residues.

    For a GPU such a batch is too small: there a round is a share of the proteome.
    """
    if options.device == "gpu":
        by_length = sorted(sequences, key=len)
        every = -(-sum(map(len, sequences)) // options.residues)
        every = max(every, options.rounds)
        return [by_length[i::every] for i in range(options.rounds)]
    batches = list(embed_peers.prott5_embedder_batches(sequences))
    residues = np.cumsum([sum(map(len, batch)) for batch in batches])
    quantiles = (np.arange(options.rounds) + 0.5) / options.rounds
    indices = np.searchsorted(residues, quantiles * residues[-1])

    def first(batch):
        ends = np.cumsum([len(x) for x in batch])
        return batch[: max(1, int(np.searchsorted(ends, options.residues, "right")))]

    return [first(batches[i]) for i in indices]


def serve(options: argparse.Namespace) -> None:
    """Runs a worker: loads its model and serves rounds."""
    folder = model_folder(options)
    shape = embed_peers.shape_of(options.shape, options.layers)
    peer = embed_peers.make(
        options.worker, folder, shape, options.batch_tokens, options.device
    )
    sequences = embed_peers.read_fasta(options.fasta)
    peer.prepare(sequences)
    embed = [
        {
            "features": embed_peers.Task("embed", chosen),
            "residues": sum(map(len, chosen)),
            "tokens": peer.tokens(chosen),
        }
        for chosen in choose_rounds(sequences, options)
    ]
    kinds = {"embed": embed}
    for name in ("product", "save"):
        chosen = embed[0]["features"].sequences
        task = embed_peers.Task(name, chosen, vectors_file(options, options.worker))
        kinds[name] = [{"features": task, "residues": 0, "tokens": 0}]
    duel.serve(peer, kinds)


def start_cold(options: argparse.Namespace) -> None:
    """Embeds one protein, for the measurement of cold starts."""
    folder = model_folder(options)
    shape = embed_peers.shape_of(options.shape, options.layers)
    peer = embed_peers.make(
        options.cold, folder, shape, options.batch_tokens, options.device
    )
    sequence = ("MKTAYIAKQRLLKMACDWWY" * 99)[:_COLD_RESIDUES]
    peer.prepare([sequence])
    vectors = peer.embed(embed_peers.Task("embed", [sequence]))
    assert vectors[0].shape == (_COLD_RESIDUES, shape.d_model)


def model_folder(options: argparse.Namespace) -> pathlib.Path:
    """Folder with the weights of a shape."""
    shape = embed_peers.shape_of(options.shape, options.layers)
    return pathlib.Path(options.models) / f"{options.shape}_{shape.layers}_layers"


def vectors_file(options: argparse.Namespace, worker: str) -> pathlib.Path:
    """File for a worker's vectors of the first round."""
    return pathlib.Path(options.models) / f"vectors_{worker}.npy"


def arguments_of(options: argparse.Namespace) -> list[str]:
    """Common command line of workers, without the peer's name."""
    names = ("fasta", "models", "shape", "rounds", "residues", "batch_tokens", "device")
    arguments = [f"--{name}={getattr(options, name)}" for name in names]
    if options.layers:
        arguments.append(f"--layers={options.layers}")
    return [__file__, *arguments]


def compare(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Compares ours with each peer.

    Returns:
      By peer: figures of "ours", "peer" and their matrix products, and lowest and mean
      "cosines".
    """
    own = f"ours-{options.precision}"
    ours = duel.Worker([*arguments_of(options), f"--worker={own}"])
    results = {}
    warm_up(ours, options)
    ours.step("save", 0)
    for name in options.peers.split(","):
        peer = duel.Worker([*arguments_of(options), f"--worker={name}"])
        warm_up(peer, options)
        lanes = {"ours": ours, "peer": peer}
        figures: dict[str, Any] = {
            f"{lane}{what}": [] for lane in lanes for what in ("", " product")
        }
        peer.step("save", 0)
        figures["cosines"] = cosines(
            *(np.load(vectors_file(options, worker)) for worker in (own, name))
        )
        for round_ in range(options.rounds):
            for lane, worker in lanes.items():
                figure = worker.step("embed", round_, options.patience)
                figures[lane].append(figure)
                title = name if lane == "peer" else f"ours-{options.precision}"
                product = worker.step("product", 0)
                figures[f"{lane} product"].append(product)
                print(
                    f"round {round_} {title:16s} {figure['seconds']:7.2f} s "
                    f"{figure['residues'] / figure['seconds']:7.1f} residues/s "
                    f"fill {figure['residues'] / figure['tokens']:.3f} size "
                    f"{figure['loss']:.4f} peak {figure['peak_gib']:.2f} GiB products "
                    f"{product['loss']:.0f} GFLOP/s others {figure['others']:.0%}",
                    flush=True,
                )
        peer.close()
        results[name] = figures
    ours.close()
    return results


def cosines(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Lowest and mean cosine between corresponding rows of two arrays."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    row_cosines = np.sum(a * b, axis=1) / norms
    return float(row_cosines.min()), float(row_cosines.mean())


def warm_up(worker: duel.Worker, options: argparse.Namespace) -> None:
    """Runs every round once, which compiles programs for its lengths."""
    for round_ in range(options.rounds):
        worker.step("embed", round_)


def cold_starts(options: argparse.Namespace) -> dict[str, float]:
    """Seconds from the start of a process to the vectors of one protein."""
    seconds = {}
    for name in (f"ours-{options.precision}", *options.peers.split(",")):
        best = np.inf
        for _ in range(2):  # The first fills the page cache.
            start = time.perf_counter()
            command = [sys.executable, *arguments_of(options), f"--cold={name}"]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            best = min(best, time.perf_counter() - start)
        seconds[name] = best
        print(f"cold start {name}: {best:.1f} s", flush=True)
    return seconds


def table(
    duels: dict[str, dict[str, Any]],
    cold: dict[str, float],
    shape: embed_peers.Shape,
    rounds: list[list[str]],
    precision: str,
) -> str:
    """Table with a line per embedder, and ratios of ours to each peer by round."""
    flops = [sum(shape.flops(len(x)) for x in chosen) for chosen in rounds]
    own = f"ours-{precision}"
    lines = [
        "| | residues/s | GFLOP/s | of products alone | padding | peak GiB | "
        "first vector, s | cosine, lowest and mean | ours over it (range of rounds) | "
        "per CPU second |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]

    def peak_of_products(figures):
        # The faster library's rate is what the machine reaches.
        return max(
            statistics.median(x["loss"] for x in figures[f"{lane} product"])
            for lane in ("ours", "peer")
            if lane == "ours"
            or (precision in name and precision != "int8")
            or (name == "prott5_embedder" and precision == "f32")
        )

    def line(name, figures, peak, ratios):
        seconds = sum(x["seconds"] for x in figures)
        rate = sum(x["residues"] for x in figures) / seconds
        tokens = sum(x["tokens"] for x in figures)
        specials = shape.specials * sum(map(len, rounds))
        real = sum(x["residues"] for x in figures) + specials
        achieved = sum(flops) / seconds / 1e9
        start = f"{cold[name]:.1f}" if name in cold else ""
        return (
            f"| {name} | {rate:.1f} | {achieved:.0f} | {achieved / peak:.0%} | "
            f"{1 - real / tokens:.1%} | {figures[-1]['peak_gib']:.2f} | {start} | "
            f"{ratios} |"
        )

    def ratio(figures, value):
        pairs = zip(figures["ours"], figures["peer"], strict=True)
        ratios = [value(b) / value(a) for a, b in pairs]
        middle = statistics.geometric_mean(ratios)
        return f"**{middle:.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"

    for name, figures in duels.items():
        peak = peak_of_products(figures)
        lines.append(line(f"{own} beside {name}", figures["ours"], peak, " | | "))
        lowest, mean = figures["cosines"]
        by_clock = ratio(figures, lambda x: x["seconds"])
        by_cpu = ratio(figures, lambda x: x["cpu_seconds"])
        others = f"{lowest:.6f}, {mean:.6f} | {by_clock} | {by_cpu}"
        lines.append(line(name, figures["peer"], peak, others))
    if own in cold:
        lines.append(f"\n{own} from start to the first vector: {cold[own]:.1f} s.")
    others = [x["others"] for figures in duels.values() for x in figures["ours"]]
    lines.append(f"\nOther processes took {statistics.median(others):.0%} meanwhile.")
    return "\n".join(lines) + "\n"


def gpu_name() -> str:
    """Name of the first GPU."""
    import torch

    return torch.cuda.get_device_name()


def utilisation(
    duels: dict[str, dict[str, Any]],
    shape: embed_peers.Shape,
    rounds: list[list[str]],
    precision: str,
) -> str:
    """MFU of all embedders, relative to the GPU's published peak."""
    from prottrans_jax.costs import hardware

    chip = hardware.chip_of_kind(gpu_name())
    if chip is None:
        return f"No rate of {gpu_name()} is known here, so no MFU."
    work = sum(shape.flops(len(x)) for chosen in rounds for x in chosen)
    shares = []
    for name, figures in duels.items():
        for label, lane in ((f"ours-{precision}", "ours"), (name, "peer")):
            seconds = sum(x["seconds"] for x in figures[lane])
            shares.append(f"{label} {work / seconds / chip.flops:.1%}")
    return (
        f"MFU, of {chip.flops / 1e12:.0f} TFLOP/s (dense bfloat16, published), in "
        f"turns: {', '.join(shares)}."
    )


def main() -> None:
    """Runs the comparison; with --write, records it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fasta", required=True, help="proteins, such as E. coli's")
    parser.add_argument("--models", required=True, help="folder for random weights")
    parser.add_argument("--shape", choices=tuple(embed_peers.SHAPES), required=True)
    parser.add_argument("--layers", type=int, help="fewer, for a quick look")
    parser.add_argument("--precision", choices=tuple(PEERS), default="bf16")
    parser.add_argument("--peers", help="e.g. sdpa-bf16,int8; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--residues", type=int, default=10**6, help="of a round, at most"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--batch_tokens", type=int, help="of torch; 1000, on a GPU 16384"
    )
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds to wait for a quiet moment"
    )
    parser.add_argument("--skip_cold", action="store_true", help="no cold starts")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cold", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch_tokens is None:
        options.batch_tokens = 16384 if options.device == "gpu" else 1000
    if options.worker:
        serve(options)
        return
    if options.cold:
        start_cold(options)
        return
    on_gpu = options.device == "gpu"
    all_peers = (GPU_PEERS if on_gpu else PEERS)[options.precision]
    options.peers = options.peers or all_peers
    folder = model_folder(options)
    if not folder.exists():
        embed_peers.make_weights(folder, options.shape, options.layers)
    cold = {} if options.skip_cold else cold_starts(options)
    duels = compare(options)
    shape = embed_peers.shape_of(options.shape, options.layers)
    sequences = embed_peers.read_fasta(options.fasta)
    rounds = choose_rounds(sequences, options)
    body = table(duels, cold, shape, rounds, options.precision)
    if on_gpu:
        body += f"\n{utilisation(duels, shape, rounds, options.precision)}\n"
    print(body)
    if options.write:
        import report

        about = ", ".join(
            sorted(
                {
                    x["about"]
                    for figures in duels.values()
                    for lane in ("ours", "peer")
                    for x in figures[lane]
                }
            )
        )
        command = (
            f"python benchmarks/embed_bench.py --fasta=PROTEOME --models=DIR "
            f"--shape={options.shape} --precision={options.precision}"
        )
        command += f" --rounds={options.rounds}"
        if on_gpu:
            command += " --device=gpu"
        if options.peers != all_peers:
            command += f" --peers={options.peers}"
        if options.residues < 10**6:
            command += f" --residues={options.residues}"
        if options.layers:
            command += f" --layers={options.layers}"
        report.replace_section(
            f"Embedding, {options.shape}, {shape.layers} layers, {options.precision}, "
            f"{gpu_name() if on_gpu else report.cpu()}",
            f"{body}\n{sum(map(len, sequences)):,} residues in "
            f"{len(sequences):,} proteins in the FASTA, "
            f"{sum(len(x) for r in rounds for x in r):,} of them embedded, in "
            f"{options.rounds} rounds in turns; {len(os.sched_getaffinity(0))} of the "
            f"cores used. {about}; {report.machine()}.\n\n`{command} --write`",
        )


if __name__ == "__main__":
    main()
