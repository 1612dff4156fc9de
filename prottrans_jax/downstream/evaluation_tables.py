"""Results of `autoeval` as a Markdown table, beside the figures of the paper."""

from collections.abc import Mapping, Sequence
from typing import Any

from prottrans_jax.downstream import published_results

# Shown beside a model that the paper does not have: its best and its best BERT.
_DEFAULT_PUBLISHED = ("ProtT5-XL-U50", "ProtBert-BFD")
_PERCENT = {
    *("accuracy", "balanced_accuracy", "macro_f1"),
    *("q3", "q8", "q10", "q2", "sov"),
}


def markdown(results: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """The table: a row for each test set and metric, a column for each encoder.

    Args:
      results: From `autoeval.evaluate`.
      settings: Of the run.
    """
    done = [result for result in results if "missing" not in result]
    encoders = list(dict.fromkeys(result["encoder"] for result in done))
    published = _published_columns(encoders)
    lines = []
    if done:
        header = ["evaluation", "test set", "proteins", "metric", *encoders]
        header += [f"{name}, published" for name in published]
        lines += [_row(header), _row(["---"] * len(header))]
        lines += _rows(done, encoders, published)
        lines += ["", *_legend(done, settings)]
    for result in results:
        if "missing" in result:
            lines.append(f"- {result['evaluation']}: left out. {result['missing']}")
    notes = dict.fromkeys(
        f"- {result['evaluation']}: {note}"
        for result in done
        for note in result["notes"]
    )
    return "\n".join([*lines, *notes]) + "\n"


def _published_columns(encoders: Sequence[str]) -> list[str]:
    own = published_results.name_in_paper(encoders[0]) if encoders else None
    return [own] if own else list(_DEFAULT_PUBLISHED)


def _rows(done, encoders, published) -> list[str]:
    lines = []
    for name in dict.fromkeys(result["evaluation"] for result in done):
        of_encoder = {r["encoder"]: r for r in done if r["evaluation"] == name}
        first = next(iter(of_encoder.values()))
        for number, test in enumerate(first["tests"]):
            for place, metric in enumerate(test["metrics"]):
                cells = [first["title"], test["name"], f"{test['proteins']:,}", metric]
                for encoder in encoders:
                    other = of_encoder[encoder]["tests"][number]
                    cells.append(_cell(other, metric, is_main=place == 0))
                figures = published_results.PUBLISHED.get((name, test["name"]), {})
                for model in published:
                    value = figures.get(model) if place == 0 else None
                    cells.append("" if value is None else _figure(value, metric))
                lines.append(_row(cells))
    return lines


def _cell(test: Mapping[str, Any], metric: str, *, is_main: bool) -> str:
    found = test["metrics"][metric]
    if found["value"] is None:
        return "not defined"
    text = _figure(found["value"], metric)
    if found["low"] is not None:
        low, high = (_figure(found[end], metric) for end in ("low", "high"))
        text += f" ({low} to {high})"
    difference = test.get("first_minus_this")
    if is_main and difference and difference["p"] is not None:
        text += f", p = {difference['p']:.2g}"
    return text


def _figure(value: float, metric: str) -> str:
    return f"{100 * value:.1f}" if metric in _PERCENT else f"{value:.3f}"


def _legend(done, settings: Mapping[str, Any]) -> list[str]:
    sizes = dict.fromkeys(
        f"{r['title']} {r['train_proteins']:,} and {r['validation_proteins']:,}"
        for r in done
    )
    return [
        "Shares in percent. In parentheses: 95 % intervals of a bootstrap over "
        f"proteins ({settings['resamples']:,} resamples). p: two-sided, paired over "
        "the same proteins, of no difference to the first encoder.",
        "",
        f"Heads: {settings['epochs']} epochs of Adam at {settings['learning_rate']}, "
        f"{settings['batch_size']} proteins a batch, the epoch with the least "
        f"validation loss; seed {settings['seed']}. Training and validation proteins: "
        f"{'; '.join(sizes)}. Encoders are frozen.",
        "",
        "Published: README of ProtTrans, other training settings.",
        "",
    ]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
