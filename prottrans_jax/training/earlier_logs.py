"""Log files that are in a model directory before its run has a checkpoint.

Another program wrote them, or a run whose checkpoints were deleted. This run would
overwrite or truncate them, so they are renamed first.
"""

from absl import logging

from prottrans_jax.files import paths, writing
from prottrans_jax.training import event_files

CONFIG, METRICS = "config.gin", "metrics.jsonl"


def set_aside(run: paths.Place, config_text: str) -> list[paths.Place]:
    """Renames earlier log files to NAME.before-N; returns their new paths.

    Args:
      run: The model directory.
      config_text: The configuration that this run will write. A configuration file with
        the same text stays.

    Raises:
      OSError: A file cannot be read or renamed.
    """
    moved = []
    for path in (run / CONFIG, run / METRICS, *event_files.find(run)):
        if not path.is_file() or not (content := path.read_bytes()):
            continue
        if path.name == CONFIG and content == config_text.encode():
            continue
        # TensorBoard reads every file with "tfevents" in its name.
        name = path.name.replace("tfevents", "events")
        target = writing.set_aside(path, name + ".before-{}")
        logging.warning(
            "%s was there before this run, which has no checkpoint yet: it was renamed "
            "to %s.",
            path,
            target.name,
        )
        moved.append(target)
    return moved
