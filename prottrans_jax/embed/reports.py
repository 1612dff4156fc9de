"""What a job says of itself: before it computes, meanwhile, and at the end."""

from collections.abc import Mapping
import dataclasses
import pathlib
import resource
import sys

from prottrans_jax.embed import inputs


@dataclasses.dataclass(frozen=True)
class Plan:
    """The pre-flight line's figures.

    Attributes:
      proteins: To be in the output.
      residues: Of these.
      longest: Residues of the longest.
      longest_id: Its id.
      to_compute: Proteins not known yet.
      to_compute_residues: Of these.
      output_bytes: Size of the output, about.
      needed_bytes: Space needed, shards included.
      free_bytes: Space free at the output.
      left_out: Records that will not be in the output, by reason.
      cut: Proteins that are truncated or go through in pieces, by what is done.
      limit: Residues above which they are.
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
    """How far a run is.

    Attributes:
      proteins: Computed.
      residues: Of these.
      of_proteins: To be computed.
      of_residues: Of these.
      seconds: Since computing began, compilation included.
      residues_per_second: Without the time of compilation.
      seconds_left: An estimate from the pace so far, without the time of compilation;
        None as long as that was too short to tell.
      computing: What the device computes now, for people.
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
    """What a job has computed, and how long it took without compilation.

    Args:
      proteins: To be computed.
      residues: Of these.
      cost: Of these; time is proportional to it.
    """

    # Before that, start-up effects would be multiplied by the size of the job.
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
        """How far the job is after `seconds`, compilation included."""
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
    """What a run did.

    Attributes:
      outputs: Files written.
      embedded: Proteins computed by this run.
      resumed: Proteins that an earlier run of the same job had computed.
      reused: Proteins taken from other files, or from the output as it was.
      repeated: Records whose key and sequence came before.
      kept: Proteins of the output from earlier inputs that are not in this one.
      dropped: Proteins of the output as it was that are not in it any more.
      skipped: Records left out, with reasons.
      cut: Records that were truncated, or went through in pieces.
      limit: Residues above which they were.
      letters: Letters of the input that are not among the 20 amino acids.
      residues: Residues computed by this run.
      seconds: Of computing, without start and merging.
      peak_memory_bytes: Of the process.
      padding: Share of the tokens in products that was padding; special ones are not.
    """

    outputs: list[pathlib.Path]
    embedded: int = 0
    resumed: int = 0
    reused: int = 0
    repeated: int = 0
    kept: int = 0
    dropped: int = 0
    skipped: list[inputs.Treated] = dataclasses.field(default_factory=list)
    cut: list[inputs.Treated] = dataclasses.field(default_factory=list)
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
    """The most memory that this process has held."""
    if sys.platform.startswith("linux"):
        # `ru_maxrss` there begins with what the process that started this one held.
        status = pathlib.Path("/proc/self/status").read_text()
        _, found, rest = status.partition("VmHWM:")
        if found:  # Not in every sandbox.
            return 1024 * int(rest.split()[0])
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage * (1 if sys.platform == "darwin" else 1024)
