"""Predicts labels of the proteins in FASTA files, with the embedding job.

The job computes outputs of the head instead of vectors, into HDF5. So a killed
prediction resumes, and proteins over a limit, invalid records and duplicates are
treated as in `embed`. Text formats are then written from that file.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
from jaxtyping import Float
import numpy as np

from prottrans_jax.downstream import head_folders, prediction_files
from prottrans_jax.embed import embedder, forward, inputs, job, reports, settings
from prottrans_jax.files import digests, ownership, paths

# Lengths per octave to which a protein is padded: each is a compiled program.
_LENGTHS_PER_OCTAVE = 4


@dataclasses.dataclass(frozen=True)
class PredictingEncoder:
    """An encoder and a head, as an encoder whose vectors are the head's outputs.

    Attributes:
      encoder: `encoders.frozen_models.Encoder`.
      head: A head that was trained on its vectors.

    Raises:
      ValueError: It was trained on another encoder.
    """

    encoder: Any
    head: head_folders.Head

    def __post_init__(self):
        self.head.check_encoder(self.encoder)

    def __getattr__(self, name: str) -> Any:
        # Name, source, revision, vocabulary, dtype ... are the encoder's.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.encoder, name)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the weights of both."""
        digest = digests.Sha256()
        digest.update(self.encoder.fingerprint.encode())
        for array in jax.tree.leaves(self.head.params):
            digest.update(np.ascontiguousarray(array).tobytes())
        for task in self.head.tasks:
            digest.update(f"{task.name} {task.classes}\n".encode())
        return digest.hexdigest()

    @property
    def d_model(self) -> int:
        """Number of outputs."""
        return sum(task.num_outputs for task in self.head.tasks)

    def make_embedder(
        self,
        *,
        pool: str | None,
        layers: forward.Layers,
        keep_residues: bool | None,
        max_tokens: int | None,
        max_rows: int | None,
        devices: Sequence[jax.Device] | None,
        may_share_rows: bool = False,
    ) -> "_Predictor":
        """The runner of batches."""
        del pool, keep_residues
        runner = self.encoder.make_embedder(
            pool=None,
            layers=layers,
            keep_residues=True,
            max_tokens=max_tokens,
            max_rows=max_rows,
            devices=devices,
            may_share_rows=may_share_rows,
        )
        return _Predictor(runner, self.head)


class _Predictor:
    """As `embed.embedder.Embedder`, with outputs of a head in place of vectors."""

    def __init__(self, runner: embedder.Embedder, head: head_folders.Head):
        self._runner = runner
        self._head = head
        self._apply = jax.jit(head.__call__)
        self.compile_seconds = 0.0
        self.tokens = runner.tokens
        self.cost = runner.cost
        self.buckets = runner.buckets
        self.work = runner.work

    def run(
        self,
        work: Iterable[embedder.Work],
        on_too_large: (
            Callable[[embedder.Work, embedder.OutOfMemory], None] | None
        ) = None,
        on_wait: Callable[[embedder.Work], None] = lambda work: None,
    ) -> Iterator[tuple[embedder.Work, int, embedder.Embedding]]:
        """(work, number, outputs) of every member of the batches.

        For a head of proteins, `residues` repeats the protein's outputs, so that the
        mean over pieces of a long protein is weighted by their residues.
        """
        for item, member, embedding in self._runner.run(work, on_too_large, on_wait):
            self.compile_seconds = self._runner.compile_seconds
            assert embedding.residues is not None
            outputs = self._outputs(embedding.residues)
            if self._head.level == "residue":
                yield item, member, embedder.Embedding(outputs, None)
            else:
                length = len(embedding.residues)
                repeated = np.broadcast_to(outputs, (length, outputs.size))
                yield item, member, embedder.Embedding(repeated, outputs)

    def _outputs(
        self, vectors: Float[np.ndarray, "length d_model"]
    ) -> Float[np.ndarray, "*length outputs"]:
        length = len(vectors)
        padded = _padded_length(length)
        x = np.zeros((1, padded, vectors.shape[1]), vectors.dtype)
        x[0, :length] = vectors
        mask = (np.arange(padded) < length)[None]
        outputs = np.asarray(self._apply(x, mask))[0]
        return outputs[:length] if self._head.level == "residue" else outputs


def _padded_length(length: int) -> int:
    """The length rounded up, by less than a quarter, to one of a few."""
    grain = max(8, (1 << (length - 1).bit_length()) // 2 // _LENGTHS_PER_OCTAVE)
    return -(-length // grain) * grain


def predict(
    encoder: Any,
    head: head_folders.Head,
    source: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    options: settings.Options,
    *,
    format: str | None = None,
    on_plan: Callable[[reports.Plan], None] | None = None,
    on_progress: Callable[[reports.Progress], None] | None = None,
) -> reports.Report:
    """Predicts labels of the proteins of FASTA files; resumes a stopped prediction.

    Args:
      encoder: `encoders.frozen_models.Encoder`.
      head: The head.
      source: FASTA files, which are read in order as one; not standard input.
      output: File to write. Probabilities are in HDF5, in `output` itself or beside it
        in OUTPUT.probabilities.h5.
      options: As for `embed.job.embed_fasta`; which outputs there are, and their type,
        is set here.
      format: A key of `prediction_files.FORMATS`; None: by the suffix.
      on_plan: As for `embed_fasta`.
      on_progress: As for `embed_fasta`.

    Raises:
      ValueError: The head was trained on another encoder, or cannot be written in the
        format. Besides, as `embed_fasta`.
    """
    place = paths.place(output, "--output")
    kind = prediction_files.format_of(place, format, head.tasks)
    per_residue = head.level == "residue"
    options = dataclasses.replace(
        options,
        per_residue=per_residue,
        per_protein=not per_residue,
        output_dtype="float32",
    )
    probabilities = place
    if kind != "h5":
        probabilities = place.with_name(f"{place.name}.probabilities.h5")
        if place.exists() and place.stat().st_size and not probabilities.exists():
            raise ownership.ForeignError(
                f"{place} exists and was not made by prottrans predict (there is no "
                f"{probabilities.name} beside it). Move it, or choose another output."
            )
    report = job.embed_fasta(
        PredictingEncoder(encoder, head),
        source,
        probabilities,
        options,
        on_plan=on_plan,
        on_progress=on_progress,
    )
    if kind != "h5":
        records = inputs.scan(
            source,
            key_scheme=options.key,
            on_bad=options.on_bad,
            on_duplicate=options.on_duplicate,
            allow_nucleotides=options.allow_nucleotides,
        )
        prediction_files.write(
            kind, place, head.tasks, records.proteins(), pathlib.Path(probabilities)
        )
        report.outputs = [place, *report.outputs]
    return report
