"""Records how an output was made, and whether it is complete.

attributes         in the file: the same for the same embeddings on any machine
OUTPUT.json        run, options, input, machine; "complete" once the output is finished
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
from prottrans_jax.files import json_text, paths, writing


def attributes(
    job_settings: settings.Settings, num_proteins: int
) -> dict[str, dict[str, Any]]:
    """Root attributes by kind; independent of time and machine."""
    common = {
        "model_name": job_settings.encoder.name,
        "model_revision": job_settings.encoder.revision,
        "weights_fingerprint": job_settings.encoder.fingerprint,
        "layer": str(job_settings.layers),
        "dtype_compute": job_settings.dtype_compute,
        "prottrans_version": prottrans_jax.__version__,
        outputs.IDENTITY: json.dumps(job_settings.identity, sort_keys=True),
    }
    return {
        kind: common
        | {
            "pooling": job_settings.pool if kind == "protein" else "none",
            "n_proteins": num_proteins,
        }
        for kind in job_settings.paths
    }


def write(
    job_settings: settings.Settings,
    records: inputs.Inputs,
    *,
    kept: int,
    complete: bool,
) -> None:
    """Writes OUTPUT.json beside every output.

    Args:
      job_settings: Resolved settings of the job.
      records: Records of the input.
      kept: Number of proteins from earlier inputs that are not in this one.
      complete: Whether the output is finished.
    """
    cut = collections.Counter(notes.action for notes in records.cut)
    options = dataclasses.asdict(
        dataclasses.replace(job_settings.options, devices=None)
    )
    content = {
        "run": job_settings.identity,
        "options": {
            name: value if isinstance(value, int | None) else str(value)
            for name, value in options.items()
        }
        | {
            # Resolved values: the default is per residue.
            "per_residue": "residues" in job_settings.paths,
            "per_protein": "protein" in job_settings.paths,
        },
        "model_source": str(job_settings.encoder.source),
        "model_revision": job_settings.encoder.revision,
        "input": _input(records),
        "proteins": len(records.chosen) + kept,
        "kept_from_earlier_inputs": kept,
        "skipped": len(records.skipped),
        "truncated": cut[inputs.TRUNCATED],
        "chunked": cut[inputs.CHUNKED],
        "residues_cleaned": {
            "gaps": records.letters.gaps,
            "stops": records.letters.stops,
        },
        "unusual_letters": records.letters.unusual,
        "nothing_but_x": len(records.letters.only_x),
        "device": jax.devices()[0].device_kind,
        "versions": {
            "prottrans_jax": prottrans_jax.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "complete": complete,
    }
    for path in job_settings.paths.values():
        writing.write_synced(outputs.companion(path), writers.to_json(content))


def _input(records: inputs.Inputs) -> dict[str, Any]:
    content: dict[str, Any] = {"path": records.path, "sha256": records.sha256}
    if len(records.paths) > 1:
        content["files"] = [
            {"path": path, "sha256": digest}
            for path, digest in zip(records.paths, records.digests, strict=True)
        ]
    return content


def is_complete(job_settings: settings.Settings, records: inputs.Inputs) -> int | None:
    """Checks whether finished outputs of this input and these settings exist.

    Returns:
      None if not; else the number of proteins in them from earlier inputs.
    """
    kept = 0
    for path in job_settings.paths.values():
        beside = outputs.companion(path)
        if not (path.exists() and beside.is_file()):
            return None
        about = json_text.parse(beside.read_text(encoding="utf-8"))
        if not about.get("complete"):
            return None
        if shards.differing_settings(about.get("run") or {}, job_settings.identity):
            return None
        if about.get("input", {}).get("sha256") != records.sha256 or about.get(
            "skipped"
        ) != len(records.skipped):
            return None
        kept = about.get("proteins", 0) - len(records.chosen)
    return kept


def write_record_notes(output: paths.Place, records: inputs.Inputs) -> None:
    """Writes OUTPUT.skipped.tsv, or deletes that of an earlier run."""
    path = outputs.skipped_list(output)
    notes = [*records.skipped, *records.cut]
    if not notes:
        writing.remove(path)
        return
    rows = [("id", "line", "reason", "detail", "action")]
    rows += [
        (note.name, str(note.line), note.reason, note.detail, note.action)
        for note in notes
    ]
    text = "".join("\t".join(row) + "\n" for row in rows)
    writing.write_synced(path, text.encode())
