"""Corruption for causal language modelling, the objective of Transformer-XL.

Rows continue in the next batch (`lanes`), so that a model with memories reads whole
proteins of any length.
"""

import dataclasses

import jaxtyping
import numpy as np

from prottrans_jax.data.corruption import streams
from prottrans_jax.proteins import vocabulary as vocabulary_lib

LAYOUT = streams.Layout(
    length="inputs",
    fields={
        "input_tokens": streams.Field(np.int32, task_feature="inputs"),
        "target_tokens": streams.Field(np.int32, task_feature="targets"),
        "loss_weights": streams.Field(np.float32, task_feature="loss_weights"),
    },
)


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Predicts each token from the tokens before it (Dai et al. 2019).

    A protein corresponds to one line of Transformer-XL's text and ends with `<eos>`. It
    also begins with `<eos>`, as the previous line would have ended, so that the first
    residue is predicted too. All targets have weight 1, including `<eos>`.

    Example (ids of our ProtTXL: M 19, K 10, T 13, A 4, Y 18, `<eos>` 1):

      >>> from prottrans_jax.proteins import vocabulary
      >>> ids = vocabulary.PROT_TXL.encode("MKTAY").astype(np.uint8)
      >>> out = NextToken().corrupt(ids, np.array([5]), np.array([0], np.uint64))
      >>> print(out["input_tokens"])
      [ 1 19 10 13  4 18]
      >>> print(out["target_tokens"])
      [19 10 13  4 18  1]
    """

    vocabulary: vocabulary_lib.Vocabulary = dataclasses.field(
        default=vocabulary_lib.PROT_TXL, repr=False
    )

    @property
    def layouts(self) -> tuple[streams.Layout, ...]:
        """As `streams.Corruption.layouts`."""
        return (LAYOUT,)

    @property
    def in_lanes(self) -> bool:
        """As `streams.Corruption.in_lanes`."""
        return True

    @property
    def predicted_specials(self) -> tuple[int, ...]:
        """As `streams.Corruption.predicted_specials`: `<eos>`."""
        return (self.vocabulary.eos_id,) if self.vocabulary.eos_id is not None else ()

    def num_tokens(
        self, lengths: jaxtyping.Integer[np.ndarray, " pieces"]
    ) -> jaxtyping.Int64[np.ndarray, "pieces 1"]:
        """As `streams.Corruption.num_tokens`: residues and `<eos>`."""
        return np.asarray(lengths, np.int64)[:, None] + 1

    def max_residues(self, *capacities: int) -> int:
        """As `streams.Corruption.max_residues`; not used by lanes."""
        (length,) = capacities
        return streams.at_least_one(
            length - 1, f"{length} tokens have no room for one residue and <eos>"
        )

    def corrupt(
        self,
        residues: jaxtyping.UInt8[np.ndarray, " residues"],
        lengths: streams.Lengths,
        keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    ) -> streams.Stream:
        """As `streams.Corruption.corrupt`; hides nothing and ignores `keys`."""
        del keys
        if self.vocabulary.eos_id is None:
            raise ValueError(f"{self.vocabulary.name} has no <eos>.")
        total = np.asarray(lengths, np.int64) + 1
        ends = np.cumsum(total)
        inputs, targets = np.full(
            (2, int(total.sum())), self.vocabulary.eos_id, np.uint8
        )
        is_residue = np.ones(len(inputs), bool)
        is_residue[ends - total] = False
        inputs[is_residue] = residues
        targets[np.flatnonzero(is_residue) - 1] = residues
        return streams.Stream(
            LAYOUT,
            total,
            {
                "input_tokens": inputs,
                "target_tokens": targets,
                "loss_weights": np.ones(len(inputs), np.float32),
            },
        )
