"""Tables that rename parameters: theirs, ours, and what is done to the array."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import numpy as np

from prottrans_jax import types
from prottrans_jax.interop import mismatches
from prottrans_jax.layers import stack

# Parameters by path, such as "encoder/layers_0/mlp/wi/kernel".
FlatParams = dict[str, np.ndarray]

# Attributes that any `config.json` may have: bookkeeping of its training, and defaults
# of text generation, which older releases wrote beside the model's.
_BOOKKEEPING = frozenset(
    """
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_scores prefix
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    temperature tf_legacy_loss top_k top_p total_flos typical_p
    """.split()
)


class Rule(NamedTuple):
    """One line of a table; a layer's number stands as `{}` in both names.

    Attributes:
      theirs: Name in the foreign checkpoint.
      ours: Path here, with layers not stacked.
      transpose: Whether the array is transposed on the way, in either direction.
      reshape: Shape of their array, and the one that it has here before `transpose`;
        None if they are the same.
    """

    theirs: str
    ours: str
    transpose: bool = False
    reshape: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def for_layer(self, layer: int) -> "Rule":
        """The rule of one layer."""
        theirs, ours = self.theirs.format(layer), self.ours.format(layer)
        return self._replace(theirs=theirs, ours=ours)

    def take(self, array: np.ndarray) -> np.ndarray:
        """Our array from theirs; unchanged where it has another shape than theirs."""
        if self.reshape is not None and array.shape == self.reshape[0]:
            array = array.reshape(self.reshape[1])
        return array.T if self.transpose else array

    def give(self, array: np.ndarray) -> np.ndarray:
        """Their array from ours."""
        array = array.T if self.transpose else array
        return array if self.reshape is None else array.reshape(self.reshape[0])


def flat_shapes(
    init_params: Callable[[Any, jax.Array], types.Params], config: Any
) -> dict[str, tuple[int, ...]]:
    """Shapes that a model of `config` expects, by our path, layers written out."""
    tree = stack.written_out_shapes(
        lambda scanned: init_params(scanned, jax.random.key(0)), config
    )
    flat: Mapping[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return {name: x.shape for name, x in flat.items()}


def to_ours(
    checkpoint: Mapping[str, np.ndarray],
    rules: Iterable[Rule],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    ignored: Iterable[str] = (),
) -> FlatParams:
    """Our parameters from a foreign checkpoint.

    Args:
      checkpoint: Foreign arrays by name.
      rules: The table, layers written out.
      shapes: What the model expects, by our path.
      ignored: Foreign names that need no counterpart.

    Raises:
      ValueError: Something is missing, left over or has another shape: the lines that
        tell most, the number of all, and what to do.
    """
    params, used, wrong = {}, set(ignored), []
    for rule in rules:
        if rule.theirs not in checkpoint:
            continue
        used.add(rule.theirs)
        array = rule.take(np.asarray(checkpoint[rule.theirs]))
        if rule.ours in shapes and array.shape != shapes[rule.ours]:
            wrong.append(
                f"! {rule.ours} {shapes[rule.ours]} in the model, {rule.theirs} "
                f"{checkpoint[rule.theirs].shape} in the checkpoint"
            )
        params[rule.ours] = array
    theirs = {rule.ours: rule.theirs for rule in rules}
    missing = [
        f"- {name} {shapes[name]} (theirs: {theirs.get(name, 'no rule')})"
        for name in shapes
        if name not in params
    ]
    extra = [
        f"+ {name} {checkpoint[name].shape}" for name in checkpoint if name not in used
    ]
    extra += [
        f"+ {theirs[name]} {array.shape}"
        for name, array in params.items()
        if name not in shapes
    ]
    _raise_mismatch(missing, extra, wrong)
    return params


def to_theirs(params: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> FlatParams:
    """A foreign checkpoint from our parameters; the inverse of `to_ours`.

    Raises:
      ValueError: A parameter has no rule.
    """
    by_ours = {rule.ours: rule for rule in rules}
    _raise_mismatch([f"- {name}" for name in params if name not in by_ours], [], [])
    return {
        by_ours[name].theirs: by_ours[name].give(np.asarray(array))
        for name, array in params.items()
    }


def refuse_unknown(attributes: Mapping[str, Any], ignored: Collection[str]) -> None:
    """Raises ValueError if a `config.json` holds what could change the numbers.

    Args:
      attributes: Those that have not been honoured.
      ignored: Names of those that change nothing that the model computes.
    """
    unknown = sorted(set(attributes) - set(ignored) - _BOOKKEEPING)
    if unknown:
        raise ValueError(
            "config.json has attributes that are not known here and could change what "
            "the model computes: "
            + ", ".join(f"{name}={attributes[name]!r}" for name in unknown)
            + ". Remove them if they do not."
        )


def _raise_mismatch(missing: list[str], extra: list[str], wrong: list[str]) -> None:
    mismatch = mismatches.Mismatch(wrong, missing, extra)
    if mismatch:
        raise ValueError(
            f"Parameters do not match {mismatch.summary(_remedy(missing, extra))}"
        )


def _remedy(missing: list[str], extra: list[str]) -> str:
    if missing and extra:
        return (
            "Are the names those of another class? Load it there, and save the "
            "model alone with save_pretrained."
        )
    if missing:
        return (
            "Is the file complete, and config.json of this model? Save it again with "
            "save_pretrained."
        )
    if extra:
        return (
            "The model has parts that are not supported here, or config.json is of "
            "another one (num_layers, tie_word_embeddings)."
        )
    return "Sizes in config.json are those of another model: use its own config.json."
