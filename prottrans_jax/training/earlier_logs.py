"""Logs that lie in a model directory before its run has a checkpoint.

They are another program's, or of a run whose checkpoints are gone. This run would
overwrite them or cut them back to step 0, so they are renamed first.
"""

import os
import pathlib

from absl import logging

from prottrans_jax.training import event_files

CONFIG, METRICS = "config.gin", "metrics.jsonl"


def set_aside(run: pathlib.Path, config_text: str) -> list[pathlib.Path]:
    """Renames such files to NAME.before-N; returns their new paths.

    Args:
      run: The model directory.
      config_text: What this run will write as its configuration; a file that holds the
        same stays.

    Raises:
      OSError: One cannot be read or renamed.
    """
    moved = []
    for path in (run / CONFIG, run / METRICS, *event_files.find(run)):
        if not path.is_file() or not (content := path.read_bytes()):
            continue
        if path.name == CONFIG and content == config_text.encode():
            continue
        # TensorBoard reads whatever has "tfevents" in its name.
        name = path.name.replace("tfevents", "events")
        number = 1
        while (target := path.with_name(f"{name}.before-{number}")).exists():
            number += 1
        os.rename(path, target)
        logging.warning(
            "%s was there before this run, which has no checkpoint yet: it is kept as "
            "%s.",
            path,
            target.name,
        )
        moved.append(target)
    return moved
