"""How an output was made: in it, beside it, and whether it is complete.

attributes         in the file: the same for the same embeddings, wherever they ran
OUTPUT.json        run, options, input, machine; "complete" once the output is whole
OUTPUT.skipped.tsv which records were left out or cut, and why
"""

import collections
import dataclasses
import json
import time
from typing import Any

import jax
import numpy as np

import prottrans_jax
from prottrans_jax.embed import inputs, outputs, settings, shards, writers
from prottrans_jax.files import writing


def attributes(
    asked: settings.Settings, num_proteins: int
) -> dict[str, dict[str, Any]]:
    """Root attributes by kind: nothing in them depends on when or where it ran."""
    common = {
        "model_name": asked.encoder.name,
        "model_revision": asked.encoder.revision,
        "weights_fingerprint": asked.encoder.fingerprint,
        "layer": str(asked.layers),
        "dtype_compute": asked.dtype_compute,
        "prottrans_version": prottrans_jax.__version__,
        outputs.IDENTITY: json.dumps(asked.identity, sort_keys=True),
    }
    return {
        kind: common
        | {
            "pooling": asked.pool if kind == "protein" else "none",
            "n_proteins": num_proteins,
        }
        for kind in asked.paths
    }


def write(
    asked: settings.Settings, found: inputs.Inputs, *, kept: int, complete: bool
) -> None:
    """Writes OUTPUT.json beside every output.

    Args:
      asked: What was computed.
      found: The input.
      kept: Proteins of the output from earlier inputs that are not in this one.
      complete: Whether the output is whole.
    """
    cut = collections.Counter(treated.action for treated in found.cut)
    options = dataclasses.asdict(dataclasses.replace(asked.options, devices=None))
    content = {
        "run": asked.identity,
        "options": {
            name: value if isinstance(value, int | None) else str(value)
            for name, value in options.items()
        }
        | {
            # As resolved: by default it is a vector per residue.
            "per_residue": "residues" in asked.paths,
            "per_protein": "protein" in asked.paths,
        },
        "model_source": str(asked.encoder.source),
        "model_revision": asked.encoder.revision,
        "input": _input(found),
        "proteins": len(found.chosen) + kept,
        "kept_from_earlier_inputs": kept,
        "skipped": len(found.skipped),
        "truncated": cut[inputs.TRUNCATED],
        "chunked": cut[inputs.CHUNKED],
        "residues_cleaned": {"gaps": found.letters.gaps, "stops": found.letters.stops},
        "unusual_letters": found.letters.unusual,
        "nothing_but_x": len(found.letters.only_x),
        "device": jax.devices()[0].device_kind,
        "versions": {
            "prottrans_jax": prottrans_jax.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "complete": complete,
    }
    for path in asked.paths.values():
        writing.write_synced(outputs.companion(path), writers.to_json(content))


def _input(found: inputs.Inputs) -> dict[str, Any]:
    content: dict[str, Any] = {"path": found.path, "sha256": found.sha256}
    if len(found.paths) > 1:
        content["files"] = [
            {"path": path, "sha256": digest}
            for path, digest in zip(found.paths, found.digests, strict=True)
        ]
    return content


def is_complete(asked: settings.Settings, found: inputs.Inputs) -> int | None:
    """Whether the outputs are of this very input and these settings, and whole.

    Returns:
      None if they are not; else the number of proteins in them from earlier inputs.
    """
    kept = 0
    for path in asked.paths.values():
        beside = outputs.companion(path)
        if not (path.exists() and beside.is_file()):
            return None
        about = json.loads(beside.read_text(encoding="utf-8"))
        if not about.get("complete"):
            return None
        if shards.differing_fields(about.get("run") or {}, asked.identity):
            return None
        if about.get("input", {}).get("sha256") != found.sha256 or about.get(
            "skipped"
        ) != len(found.skipped):
            return None
        kept = about.get("proteins", 0) - len(found.chosen)
    return kept


def write_treated(asked: settings.Settings, found: inputs.Inputs) -> None:
    """Writes OUTPUT.skipped.tsv, or takes away that of an earlier run."""
    path = outputs.skipped_list(asked.output)
    treated = [*found.skipped, *found.cut]
    if not treated:
        path.unlink(missing_ok=True)
        return
    rows = [("id", "line", "reason", "detail", "action")]
    rows += [(t.name, str(t.line), t.reason, t.detail, t.action) for t in treated]
    text = "".join("\t".join(row) + "\n" for row in rows)
    writing.write_synced(path, text.encode())
