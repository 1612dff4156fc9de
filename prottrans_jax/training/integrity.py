"""Comparison of replicas during a run: when, and what follows a difference."""

from collections.abc import Iterator
import contextlib

from absl import logging
import jax
from jaxtyping import PyTree

from prottrans_jax.distributed import barriers, roll_call
from prottrans_jax.training import replicas, rewinding, run_settings, train_state

_NAMES_TIMEOUT_S = 900.0


class Comparison:
    """Compares the replicas of parameters every N steps, and before each save.

    Args:
      checks: settings.
      plan: shapes and shardings of the state.
    """

    def __init__(self, checks: run_settings.ReplicaChecks, plan: train_state.StatePlan):
        self._checks = checks
        self._check: replicas.ReplicaCheck | None = None
        # The step that is being folded, read while the device computes the next one.
        self._pending: tuple[int, jax.Array] | None = None
        if not checks.period:
            return
        check = replicas.ReplicaCheck(
            plan.partitioner.mesh, plan.shapes.params, plan.shardings.params
        )
        if not check.compares:
            logging.warning(
                "run_settings.ReplicaChecks.period=%d: no parameter has a replica on "
                "this mesh, so none is compared.",
                checks.period,
            )
            return
        self._check = check
        self._hosts = barriers.gather("hosts", roll_call.whoami(), _NAMES_TIMEOUT_S)

    def push(self, step: int, params: PyTree) -> None:
        """Starts the comparison of a step if it is due, and reads the previous one.

        Raises:
          rewinding.RewindError: replicas differ.
        """
        self._read()
        if self._check is not None and step % self._checks.period == 0:
            self._pending = step, self._check.fold(params)

    def run(self, step: int, params: PyTree) -> None:
        """Compares the replicas of a step that is about to be saved.

        Raises:
          rewinding.RewindError: replicas differ.
        """
        if self._check is not None:
            self._read()
            self._pending = step, self._check.fold(params)
            self._read()

    @contextlib.contextmanager
    def before_an_error(self, step: int, params: PyTree) -> Iterator[None]:
        """Compares the replicas before an error of the body ends or rewinds the run.

        A loss that is not finite, or a spike, may come from a corrupted replica.

        Raises:
          rewinding.RewindError: the body failed, and replicas differ.
        """
        try:
            yield
        except Exception:
            self.run(step, params)
            raise

    def clear(self) -> None:
        """Forgets a comparison that was begun before the run went back."""
        self._pending = None

    def _read(self) -> None:
        if self._pending is None:
            return
        assert self._check is not None
        (step, folds), self._pending = self._pending, None
        faults = self._check.faults(jax.device_get(folds))
        if faults:
            where = replicas.describe(faults, self._hosts)
            error = replicas.CorruptionError(
                f"Step {step}: silent corruption. {where}. If it comes again, take "
                "this device out of the run."
            )
            raise rewinding.RewindError(error, limit=self._checks.max_rewinds)
