"""Contacts of residues from a language model, without labels or with few.

  jacobian_contacts   categorical Jacobian (Zhang et al. 2024): how each substitution
                      changes the logits of all other residues
  attention_features  attention maps, symmetrised and corrected (Rao et al. 2021), for
                      `Regression`, logistic regression over layers and heads

Both end with the average product correction (APC, Dunn et al. 2008).
"""

from collections.abc import Sequence
import dataclasses
import os

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float
import numpy as np

from prottrans_jax.encoders import attention_maps, frozen_models
from prottrans_jax.files import paths, writing
from prottrans_jax.scoring import contact_maps, likelihoods, scorers

# Pairs nearer in the sequence are trivial; Rao et al. 2021 neither train nor test on
# them.
MIN_SEPARATION = 6
# Residues whose variants are one call: batches are full, and memory is bounded.
_RESIDUES_OF_CALL = 16


def jacobian(
    scorer: scorers.Scorer, sequence: str
) -> Float[np.ndarray, "length 20 length 20"]:
    """Categorical Jacobian: entry [i, a, j, b] is the change of logit b at residue j.

    Residue i is replaced by amino acid a, without masks; the logits of the protein
    itself are subtracted. Takes 1,600 length^2 bytes and 20 length rows.

    Args:
      scorer: With a likelihood that has a single pass.
      sequence: The protein.
    """
    (wild_type,) = scorer.amino_acid_logits([sequence])
    length = len(wild_type)
    size = len(scorers.LETTERS)
    changes = np.empty((length, size, length, size), np.float32)
    for start in range(0, length, _RESIDUES_OF_CALL):
        indices = range(start, min(start + _RESIDUES_OF_CALL, length))
        variants = [
            f"{sequence[:index]}{letter}{sequence[index + 1 :]}"
            for index in indices
            for letter in scorers.LETTERS
        ]
        logits = np.stack(scorer.amino_acid_logits(variants))
        logits = logits.reshape(len(indices), size, length, size)
        changes[start : indices.stop] = logits - wild_type
    return changes


def jacobian_contacts(
    changes: Float[np.ndarray, "length 20 length 20"],
) -> Float[np.ndarray, "length length"]:
    """Contact scores: the Jacobian centred over each axis, symmetrised, its norm, APC.

    The order is that of Zhang et al. 2024. The diagonal is 0.
    """
    centred = np.array(changes)
    for axis in range(4):
        centred -= centred.mean(axis, keepdims=True)
    centred = (centred + centred.transpose(2, 3, 0, 1)) / 2
    norms = np.sqrt(np.square(centred).sum((1, 3)))
    np.fill_diagonal(norms, 0.0)
    scores = apc(norms)
    np.fill_diagonal(scores, 0.0)
    return scores


def apc(
    scores: Float[np.ndarray, "*heads length length"],
) -> Float[np.ndarray, "*heads length length"]:
    """Average product correction: minus (row sum) (column sum) / (total sum)."""
    rows = scores.sum(-1, keepdims=True)
    columns = scores.sum(-2, keepdims=True)
    total = scores.sum((-2, -1), keepdims=True)
    return scores - rows * columns / np.where(total == 0, 1, total)


def attention_features(
    model: frozen_models.Model, sequence: str
) -> Float[np.ndarray, "features length length"]:
    """Attention of every layer and head between residues, symmetrised, with APC.

    Args:
      model: A T5 (its encoder), BERT, ALBERT or ELECTRA network.
      sequence: The protein.

    Returns:
      Features in the order of the layers, then of the heads.

    Raises:
      ValueError: The family has no attention maps; see `attention_maps`.
    """
    tokens = [*model.prefix, *model.vocabulary.encode(sequence), *model.suffix]
    maps = np.asarray(
        _attention_maps(model.module, model.params, jnp.array(tokens, jnp.int32))
    )
    first = len(model.prefix)
    residues = slice(first, first + len(sequence))
    # [layers, heads, tokens, tokens] -> [layers * heads, residues, residues]
    maps = maps[:, :, residues, residues].reshape(-1, len(sequence), len(sequence))
    return apc(maps + maps.swapaxes(1, 2))


_attention_maps = jax.jit(attention_maps.attention_maps, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class Regression:
    """Logistic regression on attention features.

    Attributes:
      coefficients: One for each layer and head, in the order of the features.
      intercept: Added to their sum.
    """

    coefficients: Float[np.ndarray, " features"]
    intercept: float

    def __call__(
        self, features: Float[np.ndarray, "features length length"]
    ) -> Float[np.ndarray, "length length"]:
        """Probability of a contact of each pair.

        Raises:
          ValueError: The features are those of another model.
        """
        if len(features) != len(self.coefficients):
            raise ValueError(
                f"The weights are for {len(self.coefficients)} layers times heads; the "
                f"model has {len(features)}. Fit weights for this model."
            )
        logits = np.tensordot(self.coefficients, features, 1) + self.intercept
        return 0.5 * (1 + np.tanh(0.5 * logits))

    def save(self, path: str | os.PathLike) -> None:
        """Writes an npz with `coefficients` and `intercept`."""
        with writing.new_file(paths.place(path, "weights")) as temporary:
            with open(temporary, "wb") as file:
                np.savez(
                    file,
                    coefficients=self.coefficients,
                    intercept=np.float32(self.intercept),
                )


def load(path: str | os.PathLike) -> Regression:
    """Reads an npz with `coefficients`, one for each layer and head, and `intercept`.

    Raises:
      ValueError: The file has other arrays.
    """
    place = paths.local(path, "--weights")
    try:
        with np.load(place, allow_pickle=False) as arrays:
            coefficients = np.asarray(arrays["coefficients"], np.float32).ravel()
            intercept = np.asarray(arrays["intercept"], np.float32)
            return Regression(coefficients, float(intercept.reshape(())))
    except (KeyError, *contact_maps.UNREADABLE):
        raise ValueError(
            f"{place}: not an npz with coefficients and intercept, as --fit writes it."
        ) from None


def fit(
    features: Sequence[Float[np.ndarray, "features length length"]],
    contacts: Sequence[Bool[np.ndarray, "length length"]],
    known: Sequence[Bool[np.ndarray, "length length"]] | None = None,
    *,
    inverse_penalty: float = 0.15,
) -> Regression:
    """Fits a regression with an L1 penalty, as Rao et al. 2021 did on 20 proteins.

    Minimises |coefficients|_1 + `inverse_penalty` times the sum of the log losses over
    pairs with a separation of at least `MIN_SEPARATION`. The intercept is not
    penalised (scikit-learn's liblinear penalises it; its saga does not).

    Args:
      features: Of each protein.
      contacts: True at contacts.
      known: True at pairs with a known answer; None: all.
      inverse_penalty: `C` of scikit-learn; 0.15 in Rao et al. 2021.

    Raises:
      ValueError: There are no pairs, or no contact among them.
    """
    from scipy import optimize

    inputs, targets = [], []
    for number, (maps, truth) in enumerate(zip(features, contacts, strict=True)):
        rows, columns = np.triu_indices(len(truth), MIN_SEPARATION)
        if known is not None:
            chosen = known[number][rows, columns]
            rows, columns = rows[chosen], columns[chosen]
        inputs.append(maps[:, rows, columns].T)
        targets.append(truth[rows, columns])
    x = np.concatenate(inputs).astype(np.float64)
    y = np.concatenate(targets).astype(np.float64)
    if not 0 < y.sum() < len(y):
        raise ValueError(
            f"{int(y.sum())} contacts among {len(y)} pairs at least {MIN_SEPARATION} "
            "residues apart: fitting needs both contacts and other pairs."
        )
    size = x.shape[1]

    def loss(parameters):
        # coefficients = positive - negative, both >= 0: |coefficients| is their sum.
        positive, negative, intercept = np.split(parameters, [size, 2 * size])
        logits = x @ (positive - negative) + intercept
        value = np.sum(np.logaddexp(0, logits) - y * logits)
        residual = 0.5 * (1 + np.tanh(0.5 * logits)) - y
        gradient = inverse_penalty * (x.T @ residual)
        total = positive.sum() + negative.sum() + inverse_penalty * value
        return total, np.concatenate(
            [1 + gradient, 1 - gradient, [inverse_penalty * residual.sum()]]
        )

    bounds = [(0, None)] * (2 * size) + [(None, None)]
    done = optimize.minimize(
        loss,
        np.zeros(2 * size + 1),
        jac=True,
        bounds=bounds,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 10000, "ftol": 1e-13, "gtol": 1e-8},
    )
    coefficients = done.x[:size] - done.x[size : 2 * size]
    return Regression(coefficients.astype(np.float32), float(done.x[-1]))


def check_bidirectional(scorer: scorers.Scorer) -> None:
    """Raises ValueError if the likelihood has no Jacobian over both directions."""
    kinds = likelihoods.Masked | likelihoods.Denoising
    if not isinstance(scorer.likelihood, kinds):
        raise ValueError(
            f"{scorer.model.name}: the Jacobian needs one pass over all residues, as "
            f"the likelihoods masked and denoising have; not {scorer.likelihood.name}."
        )
