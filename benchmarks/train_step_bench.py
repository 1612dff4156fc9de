"""Training step of our T5 against Hugging Face's in torch, on the CPU at hand.

  python benchmarks/train_step_bench.py sprot50_valid.fasta.gz [--write]

Same proteins (cropped to 511 residues and </s>, ProtT5's corruption), same sizes, same
precision class, Adafactor, forward, backward and update. Each peer is a process of its
own, loaded and warmed up; then they take turns A B C A B C in one run. Counted are real
residues of the encoder, not padding.

Ours: packed rows of 512. torch: `padded`, one protein a row of 512, as ProtT5 was
trained; `sorted`, batches of as many tokens, proteins sorted by length, padded to the
longest of their batch, the best its users can do without packing.
"""

import argparse
import gzip
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

LENGTH = 512
SIZES = {"d_model": 512, "d_ff": 2048, "num_heads": 8, "head_dim": 64, "layers": 6}


def proteins(path: str, count: int) -> list[bytes]:
    """`count` sequences of a FASTA file, drawn at random, cropped to one row."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rb") as file:
        records = file.read().split(b">")[1:]
    sequences = [b"".join(r.split(b"\n")[1:]) for r in records]
    chosen = np.random.default_rng(0).permutation(len(sequences))[:count]
    return [sequences[i][: LENGTH - 1] for i in chosen]


def make_batches(sequences: list[bytes], rows: int) -> dict[str, list[dict]]:
    """The proteins as batches of about rows * 512 tokens: packed, padded, sorted."""
    from prottrans_jax.data import assembly, corruption, packing, random_bits

    objective = corruption.IidDenoise()
    keys = random_bits.fold(random_bits.key(0), np.arange(len(sequences)))
    lengths = np.array([len(s) for s in sequences])

    def batch(groups: list[np.ndarray], length: int) -> dict:
        order = np.concatenate(groups)
        letters = np.frombuffer(b"".join(sequences[i] for i in order), np.uint8)
        pieces = objective.corrupt(
            objective.vocabulary.byte_table[letters], lengths[order], keys[order]
        )
        splits = np.cumsum([0] + [len(g) for g in groups])
        features = assembly.assemble(pieces.streams, splits, (length, length))
        return {"features": features, "residues": int(lengths[order].sum())}

    row_of, num_rows = packing.pack(objective.num_tokens(lengths), (LENGTH, LENGTH))
    packed = [np.flatnonzero(row_of == r) for r in range(num_rows)]
    # Best-fit-decreasing leaves the long proteins in the first rows.
    packed = [packed[i] for i in np.random.default_rng(1).permutation(num_rows)]
    singles = [np.array([i]) for i in range(len(sequences))]
    result: dict[str, list[dict]] = {"packed": [], "padded": [], "sorted": []}
    for kind, row_list in (("packed", packed), ("padded", singles)):
        for start in range(0, len(row_list) - rows + 1, rows):
            result[kind].append(batch(row_list[start : start + rows], LENGTH))
    group: list[np.ndarray] = []
    for i in np.argsort(-lengths, kind="stable"):
        if group and (lengths[group[0][0]] + 1) * (len(group) + 1) > rows * LENGTH:
            result["sorted"].append(batch(group, int(lengths[group[0][0]]) + 1))
            group = []
        group.append(singles[i])
    # Short and long in turn, so that any few batches are like all.
    mixed = np.random.default_rng(2).permutation(len(result["sorted"]))
    result["sorted"] = [result["sorted"][i] for i in mixed]
    return result


class Ours:
    """The trainer's own jitted step: donated state, microbatches, metrics."""

    def __init__(self, options: argparse.Namespace):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        from prottrans_jax import optimizers, partitioning, train_state, train_step
        from prottrans_jax.models import t5
        from prottrans_jax.objectives import denoising

        layers = SIZES["layers"]
        config = t5.T5Config(
            vocab_size=128,
            num_layers=layers,
            num_decoder_layers=layers,
            **{k: v for k, v in SIZES.items() if k != "layers"},
            dropout_rate=options.dropout,
            dtype="bfloat16" if options.precision == "bf16" else "float32",
            scan_layers=options.scan_layers,
        )
        optimizer = optimizers.Adafactor(learning_rate=1e-3)
        self.partitioner = partitioning.Partitioner()
        self.rows = options.rows
        objective = denoising.Denoising(t5.T5(config))
        shapes = {
            name: jax.ShapeDtypeStruct((options.rows, LENGTH), np.int32)
            for name in objective.features
        }
        self.features = objective.features
        plan = train_state.plan(objective, optimizer, self.partitioner, shapes)
        self.state = train_state.initialize(plan, self.partitioner, shapes, 0)
        self.run = train_step.make_train_step(
            plan,
            optimizer,
            self.partitioner,
            seed=0,
            num_microbatches=options.microbatches,
        )
        self.about = f"jax {jax.__version__}"

    def step(self, features: dict[str, np.ndarray]) -> float:
        """One step; its loss."""
        features = {name: features[name] for name in self.features}
        batch = self.partitioner.put_batch(features, self.rows)
        with self.partitioner.scope():
            self.state, outputs = self.run(self.state, batch)
        total, weight = outputs["sums"]["loss"]
        return float(total) / float(weight)


class Torch:
    """T5ForConditionalGeneration as its users train it."""

    def __init__(self, options: argparse.Namespace):
        import torch
        import transformers
        from transformers import optimization

        self.torch = torch
        self.bf16 = options.precision == "bf16"
        torch.manual_seed(0)
        config = transformers.T5Config(
            vocab_size=128,
            d_model=SIZES["d_model"],
            d_kv=SIZES["head_dim"],
            d_ff=SIZES["d_ff"],
            num_layers=SIZES["layers"],
            num_decoder_layers=SIZES["layers"],
            num_heads=SIZES["num_heads"],
            dropout_rate=options.dropout,
            decoder_start_token_id=0,
            use_cache=False,
        )
        self.model = transformers.T5ForConditionalGeneration._from_config(
            config, attn_implementation=options.attention
        )
        self.model.train()
        parameters = self.model.parameters()
        if options.adafactor == "torch":
            self.optimizer = torch.optim.Adafactor(parameters, lr=1e-3)
        else:
            self.optimizer = optimization.Adafactor(
                parameters, lr=1e-3, relative_step=False, warmup_init=False
            )
        self.forward = torch.compile(self.model) if options.compile else self.model
        self.about = (
            f"torch {torch.__version__}, transformers {transformers.__version__}"
        )

    def step(self, features: dict[str, np.ndarray]) -> float:
        """One step; its loss."""
        torch = self.torch
        targets = np.where(
            features["decoder_segment_ids"] > 0, features["decoder_target_tokens"], -100
        )
        as_tensor = {
            "input_ids": features["encoder_input_tokens"],
            "attention_mask": features["encoder_segment_ids"],
            "decoder_input_ids": features["decoder_input_tokens"],
            "labels": targets,
        }
        inputs = {k: torch.from_numpy(v.astype(np.int64)) for k, v in as_tensor.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.forward(**inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def work(options: argparse.Namespace) -> None:
    """A peer: reads "kind index" lines, does that step, answers with its figures."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    batches = make_batches(proteins(options.fasta, options.proteins), options.rows)
    peer = (Ours if options.worker == "ours" else Torch)(options)
    for line in sys.stdin:
        kind, index = line.split()
        batch = batches[kind][int(index) % len(batches[kind])]
        cpu, start = time.process_time(), time.perf_counter()
        loss = peer.step(batch["features"])
        answer = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "residues": batch["residues"],
            "tokens": int(batch["features"]["encoder_input_tokens"].size),
            "loss": loss,
            # kB on Linux.
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "about": peer.about,
        }
        print(json.dumps(answer), file=answers, flush=True)


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    with open("/proc/stat") as file:
        user, nice, system = (int(x) for x in file.readline().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(patience: float) -> None:
    """Returns once other work takes under a tenth of the machine, or after patience."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        start = busy_seconds()
        time.sleep(1.0)
        if busy_seconds() - start < 0.1 * os.cpu_count():
            return


class Peer:
    """The parent's end of a worker process."""

    def __init__(self, worker: str, arguments: list[str]):
        command = [sys.executable, __file__, *arguments, f"--worker={worker}"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def step(self, kind: str, index: int, patience: float = 0.0) -> dict:
        """Has it do one step, in a quiet moment if there is one."""
        wait_for_quiet(patience)
        before = busy_seconds()
        print(kind, index, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"worker died with {self.process.wait()}")
        figure = json.loads(line)
        others = busy_seconds() - before - figure["cpu_seconds"]
        figure["others"] = max(0.0, others / figure["seconds"] / os.cpu_count())
        return figure

    def close(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        self.process.wait()


def compare(options: argparse.Namespace) -> dict[str, list[dict]]:
    """The rounds; name of a lane -> a figure per round."""
    arguments = [options.fasta]
    for name in ("precision", "dropout", "rows", "microbatches", "proteins"):
        arguments.append(f"--{name}={getattr(options, name)}")
    torch_arguments = [
        *arguments,
        f"--attention={options.attention}",
        f"--adafactor={options.adafactor}",
        *(["--compile"] if options.compile else []),
    ]
    if options.scan_layers:
        arguments.append("--scan_layers")
    # torch in two processes, or the peak memory of one kind would hide the other's.
    lanes = {
        "ours, packed": ("packed", Peer("ours", arguments)),
        "torch, padded": ("padded", Peer("torch", torch_arguments)),
        "torch, sorted": ("sorted", Peer("torch", torch_arguments)),
    }
    results: dict[str, list[dict]] = {name: [] for name in lanes}
    for round_ in range(-options.warmup, options.rounds):
        for name, (kind, peer) in lanes.items():
            patience = options.patience if round_ >= 0 else 0.0
            figure = peer.step(kind, round_ + options.warmup, patience)
            if figure["others"] > 0.15 and patience:  # disturbed: once more
                again = peer.step(kind, round_ + options.warmup, patience)
                figure = min(figure, again, key=lambda f: f["others"])
            if round_ >= 0:
                results[name].append(figure)
            rate = figure["residues"] / figure["seconds"]
            print(
                f"round {round_:2d} {name:14s} {figure['seconds']:7.2f} s "
                f"{figure['cpu_seconds']:7.2f} CPU s {rate:7.0f} residues/s "
                f"fill {figure['residues'] / figure['tokens']:.3f} "
                f"loss {figure['loss']:.4f} peak {figure['peak_gib']:.2f} GiB "
                f"others {figure['others']:.0%}",
                flush=True,
            )
    for _, peer in lanes.values():
        peer.close()
    return results


def table(results: dict[str, list[dict]]) -> str:
    """Medians of each lane, and ours over each torch lane round by round."""

    def median(name: str, value) -> float:
        return statistics.median(value(f) for f in results[name])

    def rate(figure: dict) -> float:
        return figure["residues"] / figure["seconds"]

    def per_token(figure: dict) -> float:
        return figure["tokens"] / figure["seconds"]

    def per_cpu(figure: dict) -> float:
        return figure["residues"] / figure["cpu_seconds"]

    lines = [
        "| | s per step | residues/s | tokens/s | residues in tokens | "
        "residues per CPU s | peak GiB | other processes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in results:
        fill = median(name, lambda f: f["residues"] / f["tokens"])
        lines.append(
            f"| {name} | {median(name, lambda f: f['seconds']):.2f} | "
            f"{median(name, rate):.0f} | {median(name, per_token):.0f} | {fill:.1%} | "
            f"{median(name, per_cpu):.0f} | {results[name][-1]['peak_gib']:.2f} | "
            f"{median(name, lambda f: f['others']):.0%} |"
        )
    lines.append("")
    ours = results["ours, packed"]
    for name in results:
        if name == "ours, packed":
            continue
        words = []
        for what, value in (
            ("residues/s", rate),
            ("tokens/s (speed without packing)", per_token),
            ("residues per CPU second", per_cpu),
        ):
            ratios = [
                value(a) / value(b) for a, b in zip(ours, results[name], strict=True)
            ]
            words.append(
                f"{what} **{statistics.median(ratios):.2f}** "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
        lines.append(f"Ours over {name}, median (range) of rounds: {'; '.join(words)}.")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Runs the comparison and, if asked, records it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fasta", help="proteins, .gz or plain")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch of ours")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--scan_layers", action="store_true")
    parser.add_argument("--proteins", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds to wait for a quiet moment"
    )
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--adafactor", choices=("torch", "hf"), default="hf")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--worker", choices=("ours", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    results = compare(options)
    body = table(results)
    print(body)
    if options.write:
        import report

        about = ", ".join(
            sorted({f["about"] for figures in results.values() for f in figures})
        )
        shown = pathlib.Path(options.fasta).name
        command = " ".join(a for a in sys.argv[2:] if a != "--write")
        report.replace_section(
            f"Training step, {options.precision}, dropout {options.dropout:g}",
            f"{body}\nT5 of {SIZES['layers']} + {SIZES['layers']} layers, d_model "
            f"{SIZES['d_model']}, d_ff {SIZES['d_ff']}, {SIZES['num_heads']} heads; "
            f"batches of {options.rows} * {LENGTH} tokens, Adafactor; "
            f"{options.rounds} rounds in turns. torch with {options.attention} "
            f"attention, Adafactor of {options.adafactor}"
            f"{', compiled' if options.compile else ''}. {about}; {report.machine()}. "
            "`other processes`: share of the machine that they took meanwhile.\n\n"
            f"`python benchmarks/train_step_bench.py {shown} {command} --write`",
        )


if __name__ == "__main__":
    main()
