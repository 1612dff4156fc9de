"""Scalars of a run in Weights & Biases, with the optional package `wandb`.

--gin.run_settings.Logs.writer=@wandb_writer.open_writer
--gin.wandb_writer.open_writer.project="'proteins'"
"""

from collections.abc import Mapping
import os
from typing import Any

from prottrans_jax.files import digests


class WandbWriter:
    """Writes scalars to a run of `wandb`."""

    def __init__(self, run: Any):
        self._run = run

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs one step's scalars. The service drops steps before its last one."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Uploads what is left and ends the run of the service."""
        self._run.finish()


def open_writer(
    model_dir: str,
    project: str = "prottrans_jax",
    name: str | None = None,
    entity: str | None = None,
) -> WandbWriter:
    """A writer that goes on with the same run of the service after a restart.

    Args:
      model_dir: of the run; determines the run of the service.
      project: of the service.
      name: shown for the run; None: the last part of model_dir.
      entity: user or team; None: the default of the account.

    Raises:
      ValueError: `wandb` is not installed.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ValueError(
            "run_settings.Logs.writer needs a package that is not installed: "
            "pip install wandb"
        ) from error
    place = model_dir if "://" in model_dir else os.path.abspath(model_dir)
    run = wandb.init(
        project=project,
        entity=entity,
        name=name or os.path.basename(place.rstrip("/")),
        id=digests.of_json(place)[:16],
        resume="allow",
    )
    return WandbWriter(run)
