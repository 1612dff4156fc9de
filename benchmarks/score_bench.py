"""Masked marginals of a protein: `scoring.Scorer` against a loop of single rows.

  python benchmarks/score_bench.py --write

Both compute log p(amino acid | all other residues) at each of 300 residues, in float32,
with a BERT of random weights. The loop is what a notebook does: for each residue one
jitted call of the whole model on one row, whose logits at the mask are read. They take
turns in one process, after a warm-up that compiles.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import report

from prottrans_jax.embed import process
from prottrans_jax.encoders import frozen_models
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import bert
from prottrans_jax.proteins import vocabulary
from prottrans_jax.scoring import scorers

# layers, d_model, heads
SHAPES = {"small": (6, 128, 4), "tiny": (2, 32, 2)}


def make_model(layers: int, d_model: int, heads: int) -> frozen_models.Model:
    config = bert.BertConfig(
        vocab_size=30,
        num_layers=layers,
        num_heads=heads,
        head_dim=d_model // heads,
        d_model=d_model,
        d_ff=4 * d_model,
        max_length=1024,
    )
    compute = compute_config.ComputeConfig(scan_layers=False)
    vocab = vocabulary.PROT_BERT
    return frozen_models.Model(
        module=bert.Bert(config, compute),
        params=bert.init_params(config, jax.random.key(0), compute),
        config=config,
        vocabulary=vocab,
        name="random",
        source=None,
        prefix=(vocab.cls_id,),
        suffix=(vocab.sep_id,),
    )


def make_loop(model: frozen_models.Model):
    logits_of = jax.jit(
        lambda params, tokens: model.module.apply({"params": params}, tokens).logits
    )
    columns = model.vocabulary.encode(scorers.LETTERS)

    def scan(protein: str) -> np.ndarray:
        row = [*model.prefix, *model.vocabulary.encode(protein), *model.suffix]
        rows = []
        for i in range(len(protein)):
            masked = np.array([row], np.int32)
            masked[0, i + 1] = model.vocabulary.mask_id
            logits = np.asarray(logits_of(model.params, jnp.asarray(masked)))[0, i + 1]
            rows.append((logits - np.logaddexp.reduce(logits))[columns])
        return np.stack(rows)

    return scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--residues", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--write", action="store_true")
    flags = parser.parse_args()
    process.prepare()
    generator = np.random.default_rng(0)
    protein = "".join(generator.choice(list(scorers.LETTERS), flags.residues))
    layers, d_model, heads = SHAPES[flags.shape]
    model = make_model(layers, d_model, heads)
    scorer = scorers.Scorer(model, max_tokens=flags.batch_tokens)
    lanes = {
        "loop of single rows": make_loop(model),
        "Scorer": lambda text: scorer.log_probabilities([text])[0],
    }
    results = [scan(protein) for scan in lanes.values()]  # Compiles.
    difference = float(np.abs(results[0] - results[1]).max())
    seconds: dict[str, list[float]] = {name: [] for name in lanes}
    for _ in range(flags.rounds):
        for name, scan in lanes.items():
            start = time.perf_counter()
            scan(protein)
            seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    lines = [
        "| | seconds, median | residues/s |",
        "|---|---|---|",
        *(
            f"| {name} | {statistics.median(values):.2f} | "
            f"{flags.residues / statistics.median(values):.0f} |"
            for name, values in seconds.items()
        ),
        "",
        f"Scorer over the loop: **{statistics.median(ratios):.2f}** "
        f"({min(ratios):.2f} to {max(ratios):.2f}) in {flags.rounds} rounds in turns. "
        f"Largest difference of a log probability: {difference:.1e}.",
        "",
        f"A BERT of {layers} layers, d_model {d_model}, {flags.residues} residues, "
        f"float32; jax {jax.__version__}, {jax.devices()[0].device_kind}; "
        f"{report.machine()}.",
        "",
        f"`python benchmarks/score_bench.py --shape={flags.shape} "
        f"--rounds={flags.rounds} --write`",
    ]
    report.finish(f"Masked marginals, {flags.shape} BERT", lines, flags.write)


if __name__ == "__main__":
    main()
