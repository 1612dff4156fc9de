"""Tables that rename parameters: foreign name, our name, and transformation."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import numpy as np

from prottrans_jax import types
from prottrans_jax.interop import layer_stacks, mismatches
from prottrans_jax.layers import compute as compute_config

# Parameters by path, such as "encoder/layers_0/mlp/wi/kernel".
FlatParams = dict[str, np.ndarray]

# Attributes that any `config.json` may have: records of training, and defaults of text
# generation, which older releases wrote to the same file.
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
    """One line of a table; `{}` stands for a layer's number in both names.

    Attributes:
      foreign: Name in the foreign checkpoint.
      native: Path here, with layers not stacked.
      transpose: Whether the array is transposed, in either direction.
      reshape: Shape of the foreign array, and the shape here before `transpose`; None
        if they are the same.
    """

    foreign: str
    native: str
    transpose: bool = False
    reshape: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def for_layer(self, layer: int) -> "Rule":
        """The rule of one layer."""
        foreign, native = self.foreign.format(layer), self.native.format(layer)
        return self._replace(foreign=foreign, native=native)

    def take(self, array: np.ndarray) -> np.ndarray:
        """Our array from a foreign one; not reshaped if its shape is unexpected."""
        if self.reshape is not None and array.shape == self.reshape[0]:
            array = array.reshape(self.reshape[1])
        return array.T if self.transpose else array

    def give(self, array: np.ndarray) -> np.ndarray:
        """The foreign array from ours."""
        array = array.T if self.transpose else array
        return array if self.reshape is None else array.reshape(self.reshape[0])


def flat_shapes(
    init_params: Callable[..., types.Params], config: types.ModelConfig
) -> dict[str, tuple[int, ...]]:
    """Parameter shapes of a model of `config` by our path, layers not stacked."""
    tree = layer_stacks.written_out_shapes(
        lambda compute: init_params(config, jax.random.key(0), compute),
        compute_config.DEFAULT,
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
      rules: The table, with a rule for each layer.
      shapes: Expected shapes by our path.
      ignored: Foreign names that need no counterpart.

    Raises:
      ValueError: Arrays are missing, left over or of another shape; see
        `Mismatch.summary`.
    """
    params, used, wrong = {}, set(ignored), []
    for rule in rules:
        if rule.foreign not in checkpoint:
            continue
        used.add(rule.foreign)
        array = rule.take(np.asarray(checkpoint[rule.foreign]))
        if rule.native in shapes and array.shape != shapes[rule.native]:
            wrong.append(
                f"! {rule.native} {shapes[rule.native]} in the model, {rule.foreign} "
                f"{checkpoint[rule.foreign].shape} in the checkpoint"
            )
        params[rule.native] = array
    foreign_names = {rule.native: rule.foreign for rule in rules}
    missing = [
        f"- {name} {shapes[name]} (foreign name: {foreign_names.get(name, 'no rule')})"
        for name in shapes
        if name not in params
    ]
    extra = [
        f"+ {name} {checkpoint[name].shape}" for name in checkpoint if name not in used
    ]
    extra += [
        f"+ {foreign_names[name]} {array.shape}"
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
    by_native = {rule.native: rule for rule in rules}
    _raise_mismatch([f"- {name}" for name in params if name not in by_native], [], [])
    return {
        by_native[name].foreign: by_native[name].give(np.asarray(array))
        for name, array in params.items()
    }


def refuse_unknown(attributes: Mapping[str, Any], ignored: Collection[str]) -> None:
    """Raises ValueError for attributes of a `config.json` that may change the output.

    Args:
      attributes: Attributes that were not used.
      ignored: Names of attributes that do not change the model's output.
    """
    unknown = sorted(set(attributes) - set(ignored) - _BOOKKEEPING)
    if unknown:
        raise ValueError(
            "config.json has attributes that are not known here and could change the "
            "model's output: "
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
            "Do the names belong to another class? Load it there, and save the model "
            "alone with save_pretrained."
        )
    if missing:
        return (
            "Is the file complete, and config.json that of this model? Save it again "
            "with save_pretrained."
        )
    if extra:
        return (
            "The model has parts that are not supported here, or config.json belongs "
            "to another model (num_layers, tie_word_embeddings)."
        )
    return "config.json has the sizes of another model: use the model's config.json."
