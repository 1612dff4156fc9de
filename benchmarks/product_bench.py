"""Speed of matrix products on this CPU, by library and precision.

  python benchmarks/product_bench.py --write

The two products of a feed-forward block of ProtT5-XL, with 1,024 rows. Each library has
its own process; they take turns. "ours" are the products of frozen models:
`kernels.x86` on CPUs that support it, otherwise XLA's products as in `layers.dense`.
The time to round inputs to int8 is included for `kernels.x86` and torch.
"""

import argparse
import os
import statistics
import time
from typing import Any

import duel
import numpy as np

ROWS, D_MODEL, D_FF = 1024, 1024, 16384
LANES = {
    "ours": ("float32", "bfloat16", "int8"),
    "torch": ("float32", "bfloat16", "int8"),
    "numpy": ("float32",),
}


def operands() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float32 input and two kernels."""
    generator = np.random.default_rng(0)
    shapes = (ROWS, D_MODEL), (D_MODEL, D_FF), (D_FF, D_MODEL)
    x, wi, wo = (generator.standard_normal(shape, np.float32) for shape in shapes)
    return x, wi, wo


class Ours:
    """The products of frozen models."""

    def __init__(self):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from prottrans_jax.embed import process

        process.prepare()
        import jax
        import jax.numpy as jnp

        from prottrans_jax.kernels import frozen, products, x86

        def multiply(x, kernel, out_dtype):
            if x86.can_multiply(x, kernel, out_dtype):
                return x86.product(x, kernel, out_dtype)
            if x.dtype == jnp.int8:
                return jnp.matmul(x, kernel, preferred_element_type=jnp.int32)
            return products.einsum("ld,df->lf", x, kernel, x.dtype, out_dtype)

        def block(x, wi, wo):
            with frozen.scope():
                hidden = multiply(x, wi, x.dtype)
                if x.dtype == jnp.int8:
                    hidden = (hidden >> 8).astype(jnp.int8)
                return multiply(hidden, wo, jnp.float32)

        self.about = f"jax {jax.__version__}"
        self.runs = {}
        for name in LANES["ours"]:
            x, wi, wo = operands()
            scale = 20 if name == "int8" else 1
            kind = "bfloat16" if name == "int8" and x86.is_usable() else name
            x = jnp.asarray(x if kind == "bfloat16" else scale * x, kind)
            arrays = [x, *(jnp.asarray(scale * kernel, name) for kernel in (wi, wo))]
            jitted = jax.jit(block)
            self.runs[name] = lambda f=jitted, a=arrays: f(*a).block_until_ready()


class Torch:
    """oneDNN, MKL and FBGEMM."""

    def __init__(self):
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.about = f"torch {torch.__version__}"
        x, wi, wo = (torch.from_numpy(array) for array in operands())
        layers = torch.nn.Sequential(
            torch.nn.Linear(D_MODEL, D_FF, bias=False),
            torch.nn.Linear(D_FF, D_MODEL, bias=False),
        )
        layers[0].weight.data, layers[1].weight.data = (
            wi.T.contiguous(),
            wo.T.contiguous(),
        )
        kinds: dict[str, Any] = {"float32": layers}
        kinds["int8"] = torch.ao.quantization.quantize_dynamic(
            layers, {torch.nn.Linear}, dtype=torch.qint8
        )
        import copy

        kinds["bfloat16"] = copy.deepcopy(layers).to(torch.bfloat16)

        def run(name):
            with torch.inference_mode():
                kinds[name](x.bfloat16() if name == "bfloat16" else x)

        self.runs = {name: lambda name=name: run(name) for name in LANES["torch"]}


class Numpy:
    """OpenBLAS."""

    def __init__(self):
        x, wi, wo = operands()
        self.about = f"numpy {np.__version__}"
        self.runs = {"float32": lambda: (x @ wi) @ wo}


def serve(peer: Any, seconds: float) -> None:
    """Runs a worker that measures GFLOP/s of a precision."""

    def step(name: str) -> float:
        run = peer.runs[name]
        run()
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            run()
            count += 1
        return count * 4.0 * ROWS * D_MODEL * D_FF / passed / 1e9

    peer.step = step
    batch = {"residues": 0, "tokens": 0}
    duel.serve(peer, {name: [{"features": name, **batch}] for name in peer.runs})


def main() -> None:
    """Measures in turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--worker", choices=tuple(LANES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        peer = {"ours": Ours, "torch": Torch, "numpy": Numpy}[options.worker]()
        serve(peer, options.seconds)
        return
    workers = {
        name: duel.Worker(
            [__file__, f"--worker={name}", f"--seconds={options.seconds}"]
        )
        for name in LANES
    }
    lanes = [(name, kind) for name, kinds in LANES.items() for kind in kinds]
    rates: dict[tuple[str, str], list[float]] = {lane: [] for lane in lanes}
    about = set()
    for _ in range(options.rounds):
        for lane in lanes:
            figure = workers[lane[0]].step(lane[1], 0)
            rates[lane].append(figure["loss"])
            about.add(figure["about"])
    lines = ["| | GFLOP/s, median (range) |", "|---|---|"]
    for (name, kind), values in rates.items():
        median = statistics.median(values)
        lines.append(
            f"| {name}, {kind} | {median:.0f} ({min(values):.0f} to "
            f"{max(values):.0f}) |"
        )
    body = "\n".join(lines)
    print(body)
    if options.write:
        import report

        report.replace_section(
            f"Products alone, {report.cpu()}",
            f"{body}\n\n{ROWS} rows through a feed-forward block's two products "
            f"({D_MODEL} and {D_FF} columns), {options.rounds} rounds in turns; "
            f"{', '.join(sorted(about))}; {report.machine()}.\n\n"
            "`python benchmarks/product_bench.py --write`",
        )


if __name__ == "__main__":
    main()
