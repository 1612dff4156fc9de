"""Figures of a job: before the computation, during it, and at the end."""

from collections.abc import Mapping
import dataclasses
import pathlib
import resource
import sys

from prottrans_jax.embed import inputs


@dataclasses.dataclass(frozen=True)
class Plan:
    """Figures of the line that is printed before the computation.

    Attributes:
      proteins: Proteins of the input that will be in the output.
      residues: Residues of these.
      longest: Residues of the longest protein.
      longest_id: Id of the longest protein.
      to_compute: Proteins without existing vectors.
      to_compute_residues: Residues of these.
      output_bytes: Estimated size of the output.
      needed_bytes: Disk space needed, shards included.
      free_bytes: Free disk space at the output.
      left_out: Number of records left out, by reason.
      cut: Number of proteins truncated or embedded in pieces, by action.
      limit: Limit in residues for these.
    """

    proteins: int
    residues: int
    longest: int
    longest_id: str
    to_compute: int
    to_compute_residues: int
    output_bytes: int
    needed_bytes: int
    free_bytes: int
    left_out: Mapping[str, int]
    cut: Mapping[str, int]
    limit: int | None


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
      proteins: Proteins computed so far.
      residues: Residues of these.
      of_proteins: All proteins to compute.
      of_residues: Residues of these.
      seconds: Time since the computation began, compilation included.
      residues_per_second: Rate without compilation time.
      seconds_left: Estimate from the rate so far, without compilation time; None while
        there is too little data.
      computing: Description of the current batch, for people.
    """

    proteins: int
    residues: int
    of_proteins: int
    of_residues: int
    seconds: float
    residues_per_second: float = 0.0
    seconds_left: float | None = None
    computing: str = ""


class Pace:
    """Tracks finished work and estimates the time left, without compilation.

    Args:
      proteins: Proteins to compute.
      residues: Residues of these.
      cost: Cost of these; time is proportional to it.
    """

    # No estimate before this time: start-up effects would distort it.
    _LEAST_S = 2.0

    def __init__(self, proteins: int, residues: int, cost: float):
        self._total = proteins, residues
        self._cost = cost
        self._done = 0.0
        self.compile_seconds = 0.0
        self.proteins = self.residues = 0
        self.computing = ""

    def add(self, residues: int, cost: float) -> None:
        """Counts one protein as computed."""
        self.proteins += 1
        self.residues += residues
        self._done += cost

    def progress(self, seconds: float) -> Progress:
        """Progress after `seconds`, compilation included."""
        steady = seconds - self.compile_seconds
        rate, left = 0.0, None
        if steady >= self._LEAST_S and self._done:
            rate = self.residues / steady
            left = steady * max(self._cost / self._done - 1.0, 0.0)
        return Progress(
            self.proteins,
            self.residues,
            *self._total,
            seconds,
            rate,
            left,
            self.computing,
        )


@dataclasses.dataclass
class Report:
    """Result of a run.

    Attributes:
      outputs: Files written.
      embedded: Proteins computed by this run.
      resumed: Proteins computed by an earlier run of the same job.
      reused: Proteins taken from other files or from the existing output.
      repeated: Records with the key and sequence of an earlier record.
      kept: Proteins from earlier inputs that are not in this one.
      dropped: Proteins of the previous output that were removed from it.
      skipped: Records left out, with reasons.
      cut: Records that were truncated or embedded in pieces.
      limit: Limit in residues for these.
      letters: Letters of the input that are not among the 20 amino acids.
      residues: Residues computed by this run.
      seconds: Time of the computation, without start and merging.
      peak_memory_bytes: Peak memory of the process.
      padding: Share of computed tokens that was padding (special tokens are not).
    """

    outputs: list[pathlib.Path]
    embedded: int = 0
    resumed: int = 0
    reused: int = 0
    repeated: int = 0
    kept: int = 0
    dropped: int = 0
    skipped: list[inputs.RecordNote] = dataclasses.field(default_factory=list)
    cut: list[inputs.RecordNote] = dataclasses.field(default_factory=list)
    limit: int | None = None
    letters: inputs.Letters = dataclasses.field(default_factory=inputs.Letters)
    residues: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    padding: float = 0.0

    @property
    def residues_per_second(self) -> float:
        """Real residues computed per second."""
        return self.residues / self.seconds if self.seconds else 0.0


def peak_memory_bytes() -> int:
    """Peak memory of this process."""
    if sys.platform.startswith("linux"):
        # On Linux `ru_maxrss` includes memory of the parent process before exec.
        status = pathlib.Path("/proc/self/status").read_text()
        _, separator, rest = status.partition("VmHWM:")
        if separator:  # Missing in some containers.
            return 1024 * int(rest.split()[0])
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage * (1 if sys.platform == "darwin" else 1024)
