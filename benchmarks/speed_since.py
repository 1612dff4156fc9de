"""Whether embedding lost speed since another revision, on this machine.

  python benchmarks/speed_since.py --base=main

Both revisions, each in its own process with its own compiled kernels, embed the same
random proteins with the same random weights and take turns. The speed is in residues
per CPU second, which other processes disturb least. Exit status 1: a type of
products takes over 5 % more CPU time than at the base (--limit), by the median of the
rounds. Takes some 2 minutes on two cores.

For training, run `train_step_bench.py` in both checkouts.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile

import duel
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
DTYPES = ("float32", "bfloat16", "int8")
LENGTHS = (380, 310, 250, 210, 180, 150, 130, 110, 90, 80, 60, 50)


def write_model(folder: pathlib.Path) -> None:
    """Two layers of ProtT5-XL's width, with random weights."""
    import jax

    from prottrans_jax.interop import huggingface
    from prottrans_jax.models import t5

    config = t5.T5Config(
        vocab_size=128,
        num_layers=2,
        num_decoder_layers=0,
        d_model=1024,
        d_ff=16384,
        num_heads=32,
        head_dim=128,
    )
    huggingface.write(folder, config, t5.init_params(config, jax.random.key(0)))


class Embedder:
    """The encoders of one revision, for `duel.serve`."""

    def __init__(self, model: pathlib.Path, root: pathlib.Path):
        import prottrans_jax
        from prottrans_jax.embed import process

        assert root in pathlib.Path(prottrans_jax.__file__).parents, prottrans_jax
        process.prepare()
        self.about = prottrans_jax.__version__
        self.encoders = {
            dtype: prottrans_jax.load_encoder(model, dtype=dtype) for dtype in DTYPES
        }

    def step(self, features: tuple[str, list[str]]) -> float:
        """Embeds proteins; returns the mean absolute element."""
        kind, sequences = features
        vectors = self.encoders[kind].embed(sequences)
        return float(np.mean([np.abs(x).mean() for x in vectors]))


def serve(model: pathlib.Path, root: pathlib.Path) -> None:
    """Runs a worker."""
    generator = np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    sequences = ["".join(generator.choice(letters, length)) for length in LENGTHS]
    peer = Embedder(model, root)
    counts = {"residues": sum(LENGTHS), "tokens": sum(LENGTHS)}
    duel.serve(
        peer,
        {kind: [{"features": (kind, sequences), **counts}] for kind in peer.encoders},
    )


def check_out(revision: str, folder: pathlib.Path) -> pathlib.Path:
    """A copy of a revision with its compiled kernels."""
    archive = folder / "base.tar"
    subprocess.run(
        ["git", "archive", f"--output={archive}", revision], cwd=ROOT, check=True
    )
    root = folder / "base"
    with tarfile.open(archive) as file:
        file.extractall(root, filter="data")
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(build, cwd=root, check=True, stderr=subprocess.DEVNULL)
    return root


def main() -> int:
    """Measures in turns, prints a table, says whether speed was lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default="main", help="revision to compare with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=0.05, help="share of CPU time")
    parser.add_argument("--worker", nargs=2, type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(*options.worker)
        return 0
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        base = check_out(options.base, folder)
        write_model(folder / "model")
        script = str(pathlib.Path(__file__).resolve())
        workers = {}
        for side, root in (("base", base), ("now", ROOT)):
            os.environ["PYTHONPATH"] = str(root)
            workers[side] = duel.Worker(
                [script, "--worker", str(folder / "model"), str(root)]
            )
        slower = []
        for kind in DTYPES:
            figures: dict[str, list[dict]] = {"base": [], "now": []}
            for round_ in range(-1, options.rounds):
                for side, worker in workers.items():
                    figure = worker.step(kind, 0)
                    if round_ >= 0:
                        figures[side].append(figure)
            ratios = [
                after["cpu_seconds"] / before["cpu_seconds"]
                for before, after in zip(figures["base"], figures["now"], strict=True)
            ]
            ratio = statistics.median(ratios)
            same = figures["base"][0]["loss"] == figures["now"][0]["loss"]
            print(
                f"{kind:10s} CPU time now / {options.base}: {ratio:.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f}), "
                f"{figures['now'][0]['residues']} residues in "
                f"{statistics.median(x['cpu_seconds'] for x in figures['now']):.2f} "
                f"CPU s, vectors {'equal' if same else 'differ'}",
                flush=True,
            )
            if ratio > 1.0 + options.limit:
                slower.append(kind)
        for worker in workers.values():
            worker.close()
    if slower:
        print(f"Slower than {options.base}: {', '.join(slower)}.")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
