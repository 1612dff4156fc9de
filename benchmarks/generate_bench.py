"""Speed of greedy decoding against `transformers.generate`, on this CPU.

  python benchmarks/generate_bench.py --peer=PEER_PYTHON --write

Both decode the same T5 with random weights (6 + 6 layers, d_model 512, float32) from
the same masked proteins of 128 residues: 128 tokens a row, no end before. They run in
processes of their own, loaded and warmed up, and take turns (A B A B). PEER_PYTHON is a
Python with torch and transformers; by default this one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

LENGTH = 128
RESIDUES = range(3, 23)  # Ids of ProtT5.
SIZES = dict(d_model=512, d_ff=2048, num_heads=8, d_kv=64, num_layers=6)


def make_model(folder: str) -> None:
    """Writes the model in Hugging Face's layout."""
    import jax
    import numpy as np

    from prottrans_jax.interop import huggingface
    from prottrans_jax.models import t5

    config = t5.T5Config(
        vocab_size=128,
        num_layers=SIZES["num_layers"],
        num_decoder_layers=SIZES["num_layers"],
        num_heads=SIZES["num_heads"],
        head_dim=SIZES["d_kv"],
        d_model=SIZES["d_model"],
        d_ff=SIZES["d_ff"],
    )
    params = t5.init_params(config, jax.random.key(0))
    huggingface.write(folder, config, jax.tree.map(np.asarray, params))


def inputs_of(batch: int):
    """Token ids: every third residue is masked."""
    import numpy as np

    ids = np.random.default_rng(0).choice(list(RESIDUES), size=(batch, LENGTH))
    ids[:, ::3] = 127
    return np.concatenate([ids, np.ones((batch, 1), int)], axis=1)


def our_decoder(folder: str):
    """A function from token ids to the generated ids."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from prottrans_jax.encoders import loading
    from prottrans_jax.generation import decoding, sampling
    from prottrans_jax.models import t5_decoding

    model = loading.load_model(folder)
    module = t5_decoding.T5Decoding(model.config, model.module.compute)
    allowed = np.zeros(128, bool)
    allowed[list(RESIDUES)] = True

    def run(ids):
        rows = len(ids)
        out = decoding.decode(
            module,
            sampling.Sampling(greedy=True),
            model.params,
            (jnp.asarray(ids),),
            decoding.Rows(
                history=jnp.zeros((rows, 0), jnp.int32),
                forced=jnp.full((rows, LENGTH), sampling.NO_TOKEN),
                min_length=jnp.full(rows, LENGTH),
                max_length=jnp.full(rows, LENGTH),
                keys=jax.random.split(jax.random.key(0), rows),
                allowed=jnp.asarray(allowed),
                end=jnp.int32(1),
            ),
        )
        return np.asarray(out.tokens).tolist()

    return run, f"prottrans_jax, jax {jax.__version__}"


def their_decoder(folder: str):
    """The same with torch."""
    import torch
    import transformers

    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    suppressed = [i for i in range(128) if i not in RESIDUES]

    def run(ids):
        with torch.inference_mode():
            out = model.generate(
                torch.tensor(ids),
                do_sample=False,
                min_new_tokens=LENGTH,
                max_new_tokens=LENGTH,
                suppress_tokens=suppressed,
            )
        return out[:, 1:].tolist()

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return run, versions


def serve(name: str, folder: str) -> None:
    """The worker's loop: a line with the batch size in, a figure out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Output of libraries goes to stderr.
    run, about = {"ours": our_decoder, "transformers": their_decoder}[name](folder)
    for line in sys.stdin:
        ids = inputs_of(int(line))
        cpu, start = time.process_time(), time.perf_counter()
        tokens = run(ids)
        figure = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "tokens": tokens,
            "about": about,
        }
        print(json.dumps(figure), file=answers, flush=True)


def ask(worker: subprocess.Popen, batch: int) -> dict:
    """One decoding by a worker."""
    print(batch, file=worker.stdin, flush=True)
    return json.loads(worker.stdout.readline())


def measure(folder: str, peer: str, rounds: int) -> list[str]:
    """Lines of the report."""
    import report

    command = [__file__, "--folder", folder, "--serve"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    workers = {
        name: subprocess.Popen([python, *command, name], **pipes)
        for name, python in (("ours", sys.executable), ("transformers", peer))
    }
    lines = [
        "| batch | transformers, tokens/s | ours, tokens/s | ratio (range of rounds) | "
        "ratio per CPU second | equal tokens |",
        "|---|---|---|---|---|---|",
    ]
    for batch in (1, 8):
        figures: dict[str, list[dict]] = {name: [] for name in workers}
        for round_ in range(-1, rounds):
            for name, worker in workers.items():
                figure = ask(worker, batch)
                if round_ >= 0:
                    figures[name].append(figure)
                print(
                    f"batch {batch} {name}: {figure['seconds']:.2f} s, "
                    f"{figure['cpu_seconds']:.2f} CPU s",
                    flush=True,
                )
        pairs = list(zip(figures["ours"], figures["transformers"], strict=True))
        ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
        per_cpu = [
            theirs["cpu_seconds"] / ours["cpu_seconds"] for ours, theirs in pairs
        ]
        ours, theirs = pairs[0]
        equal = sum(
            x == y
            for row, other in zip(ours["tokens"], theirs["tokens"], strict=True)
            for x, y in zip(row, other, strict=True)
        )
        rates = {
            name: statistics.median(batch * LENGTH / x["seconds"] for x in some)
            for name, some in figures.items()
        }
        lines.append(
            f"| {batch} | {rates['transformers']:.0f} | {rates['ours']:.0f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {statistics.median(per_cpu):.2f} | {equal} of {batch * LENGTH} |"
        )
    about = "; ".join(figures[name][0]["about"] for name in workers)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return [
        *lines,
        "",
        f"T5 with random weights, 6 + 6 layers, d_model 512, float32, {LENGTH} new "
        f"tokens a row, in turns, {rounds} rounds, medians; {about}; "
        f"{len(os.sched_getaffinity(0))} of {report.machine()}.",
        "",
        f"`python benchmarks/generate_bench.py --peer=PEER_PYTHON --rounds={rounds} "
        "--write`, with `taskset -c 0` for one core",
    ]


def main() -> None:
    """Prints the table; with --write, records it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.folder)
        return
    import report

    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "t5")
        make_model(model)
        lines = measure(model, options.peer, options.rounds)
    report.finish("Generating with T5, f32", lines, options.write)


if __name__ == "__main__":
    main()
