"""Evaluates the model of a training run on labelled data, while it trains."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import tempfile
from typing import Any

from absl import logging

from prottrans_jax import types
from prottrans_jax.downstream import autoeval, evaluation_sets
from prottrans_jax.encoders import loading
from prottrans_jax.files import paths


@dataclasses.dataclass(frozen=True)
class DevelopmentEvaluation:
    """Metrics of heads on the vectors of the model, in minutes.

    For `run_settings.Evaluation.downstream`. Nothing of it enters the training: a run
    has the same bits with and without.

    Attributes:
      data: Folder with the labelled files; see docs/autoeval.md.
      tasks: Names of evaluations; see `evaluation_sets`.
      settings: How heads are trained.
    """

    data: str
    tasks: tuple[str, ...] = ("q3", "q10")
    settings: autoeval.Settings = autoeval.DEVELOPMENT

    def __post_init__(self):
        evaluation_sets.choose(self.tasks)
        if not paths.local(self.data, "DevelopmentEvaluation.data").is_dir():
            raise FileNotFoundError(
                f"DevelopmentEvaluation.data = {self.data!r}: there is no such folder."
            )
        self._name_missing_files()

    def _name_missing_files(self) -> None:
        """Raises if no task has training data; warns of each task without."""
        folder = paths.local(self.data, "DevelopmentEvaluation.data")
        chosen = evaluation_sets.choose(self.tasks)
        missing = [x for x in chosen if evaluation_sets.find(folder, x.train) is None]
        lines = [
            f"{evaluation.name} is left out: no file below {folder} is named "
            f"{' or '.join(evaluation.train.patterns)}."
            for evaluation in missing
        ]
        if len(missing) == len(chosen):
            raise FileNotFoundError(f"DevelopmentEvaluation: {' '.join(lines)}")
        for line in lines:
            logging.warning("DevelopmentEvaluation: %s", line)

    def __call__(
        self, objective: Any, params: types.Params, check: Callable[[], None]
    ) -> Mapping[str, float]:
        """The main metrics and the ends of their intervals.

        Args:
          objective: Objective of the run, with its `model`.
          params: Parameters in host memory.
          check: Called often; raises if the run must end.

        Returns:
          Scalars such as "q3/CASP12/accuracy", "q3/CASP12/accuracy_low" and "..._high".
        """
        encoder = loading.encoder_in_training(
            objective.model, params, "model in training"
        )
        with tempfile.TemporaryDirectory(prefix="prottrans_jax.") as folder:
            run = autoeval.Run(
                pathlib.Path(folder),
                paths.local(self.data, "DevelopmentEvaluation.data"),
                self.settings,
                check=check,
            )
            results = autoeval.evaluate(
                run, [encoder], evaluation_sets.choose(self.tasks)
            )
        return _scalars(results)


def _scalars(results) -> dict[str, float]:
    scalars = {}
    for result in results:
        for test in result.get("tests", ()):
            metric, found = next(iter(test["metrics"].items()))
            name = f"{result['evaluation']}/{test['name']}/{metric}"
            for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                if found[end] is not None:
                    scalars[name + suffix] = found[end]
    return scalars
