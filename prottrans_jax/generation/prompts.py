"""What each family starts from, as rows of token ids.

T5              encoder input: the protein with X and the residues after it up to
                `length` as masks, then `</s>`. Residues that are not masked are
                given, unless `rewrite`. Position i of the decoder is residue i.
XLNet           the prompt. It never ends a protein: in training `<sep>` and `<cls>`
                are not predicted.
Transformer-XL  `<eos>`, then the prompt. It ends a protein with `<eos>`.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

from flax import linen as nn
from jaxtyping import Bool, Int
import numpy as np

from prottrans_jax.encoders import frozen_models
from prottrans_jax.generation import sampling
from prottrans_jax.models import (
    memory_decoding,
    t5,
    t5_decoding,
    transformer_xl,
    xlnet,
)
from prottrans_jax.proteins import plurals
from prottrans_jax.proteins import vocabulary as vocabularies

# Residues of a protein for which nothing says how long it is.
DEFAULT_LENGTH = 256


class Prompt(NamedTuple):
    """A protein to begin with.

    Attributes:
      name: Its name, in messages and for the proteins made from it.
      residues: Upper-case letters; may be empty.
    """

    name: str
    residues: str


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths of the generated proteins, in residues, those of the prompt included.

    Attributes:
      most: Maximum; None: for T5 the length of the input, for the other families
        `DEFAULT_LENGTH`.
      least: Minimum; None: for T5 the maximum, for the other families 1.
      rewrite: Whether T5 samples all residues, also those that the input gives.
    """

    most: int | None = None
    least: int | None = None
    rewrite: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt as ids.

    Attributes:
      prompt: Its index.
      start: Ids for the model's `start`: of T5's encoder, or those before the first
        generated token.
      history: Ids of `start` that are residues of the protein.
      forced: Ids of the following tokens that are given, `sampling.NO_TOKEN` at those
        to sample; shorter than `max_length` if all others are to be sampled.
      min_length: Tokens before which the protein does not end.
      max_length: Tokens at which it ends.
    """

    prompt: int
    start: Int[np.ndarray, " start"]
    history: Int[np.ndarray, " history"]
    forced: Int[np.ndarray, " forced"]
    min_length: int
    max_length: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A family's decoding of a model.

    Attributes:
      module: Linen module of the protocol `decoding.Decoding`.
      row: Makes a row of a prompt and its index.
      end: Id that ends a protein, or `sampling.NO_TOKEN`.
      pads_left: Whether `start` has padding on the left, and the number of padding
        tokens as second argument.
    """

    module: nn.Module
    row: Callable[[int, Prompt], Row]
    end: int
    pads_left: bool


def plan(model: frozen_models.Model, lengths: Lengths) -> Plan:
    """How a model generates.

    Raises:
      ValueError: It cannot, or not with these lengths; the message says why.
    """
    if model.unknown_ids:
        raise ValueError(model.unknown_ids)
    config, vocabulary = model.config, model.vocabulary
    compute = dataclasses.replace(model.module.compute, remat_policy="none")
    if compute.scan_layers:
        raise ValueError("Load the model with scan_layers=False to generate with it.")
    if lengths.rewrite and not isinstance(config, t5.T5Config):
        raise ValueError(
            f"--rewrite: {model.name} continues its prompt and cannot change it; only "
            "a T5 rewrites a protein."
        )
    if isinstance(config, t5.T5Config):
        return _t5_plan(model.name, config, compute, vocabulary, lengths)
    if isinstance(config, xlnet.XLNetConfig | transformer_xl.TransformerXLConfig):
        if not config.lm_head:
            raise ValueError(f"{model.name} has no language-model head: {_WHOLE}")
        return _causal_plan(model.name, config, compute, vocabulary, lengths)
    raise ValueError(
        f"{model.name} is a {type(model.module).__name__}, which fills masks and does "
        "not generate. T5, XLNet and Transformer-XL do."
    )


_WHOLE = (
    "export the whole model with `prottrans export --part all`, or name a checkpoint "
    "that has it, such as prot_t5_xl_u50."
)


def _t5_plan(name, config: t5.T5Config, compute, vocabulary, lengths) -> Plan:
    if not config.num_decoder_layers:
        raise ValueError(f"{name} has no decoder, only the encoder: {_WHOLE}")
    if not vocabulary.num_sentinels or vocabulary.eos_id is None:
        raise ValueError(f"{name}: its vocabulary has no sentinel to mask residues.")
    mask, end = vocabulary.sentinel_id(0), vocabulary.eos_id

    def row(index: int, prompt: Prompt) -> Row:
        most = _most(prompt, lengths.most, len(prompt.residues))
        residues = prompt.residues.ljust(most, "X")
        ids = vocabulary.encode(residues)
        letters = np.frombuffer(residues.encode(), np.uint8)
        is_masked = np.isin(letters, np.frombuffer(vocabularies.X_LETTERS, np.uint8))
        if not lengths.rewrite and not is_masked.any():
            raise ValueError(
                f"{prompt.name}: no residue is X, so there is nothing to generate. "
                "Write X for unknown residues, raise --length, or pass --rewrite."
            )
        given = np.where(is_masked, sampling.NO_TOKEN, ids)
        least = most if lengths.least is None else min(lengths.least, most)
        return Row(
            prompt=index,
            start=np.append(np.where(is_masked, mask, ids), end),
            history=given[:0],
            forced=given[:0] if lengths.rewrite else given,
            min_length=least,
            max_length=most,
        )

    return Plan(t5_decoding.T5Decoding(config, compute), row, end, pads_left=False)


def _causal_plan(name, config, compute, vocabulary, lengths) -> Plan:
    is_xlnet = isinstance(config, xlnet.XLNetConfig)
    if is_xlnet and lengths.least is not None:
        raise ValueError(
            f"--min-length: {name} is an XLNet, which never ends a protein; --length "
            "is the length of every protein."
        )
    if not is_xlnet and vocabulary.eos_id is None:
        raise ValueError(f"{name}: its vocabulary has no piece that ends a protein.")
    before = np.array([] if is_xlnet else [vocabulary.eos_id], np.int32)

    def row(index: int, prompt: Prompt) -> Row:
        number = len(prompt.residues)
        if is_xlnet and not number:
            raise ValueError(f"{name} is an XLNet, which needs a prompt: --prompt M.")
        most = _most(prompt, lengths.most, DEFAULT_LENGTH)
        if most == number:
            raise ValueError(
                f"{prompt.name} has {plurals.count(number, 'residue')}, and --length="
                f"{most} leaves none to generate. Raise --length."
            )
        least = most if is_xlnet else 1 if lengths.least is None else lengths.least
        ids = vocabulary.encode(prompt.residues)
        return Row(
            prompt=index,
            start=np.concatenate([before, ids]),
            history=ids,
            forced=ids[:0],
            min_length=max(0, least - number),
            max_length=most - number,
        )

    if is_xlnet:
        xlnet_module = memory_decoding.XLNetDecoding(config, compute)
        return Plan(xlnet_module, row, sampling.NO_TOKEN, pads_left=True)
    module = memory_decoding.TransformerXLDecoding(config, compute)
    return Plan(module, row, vocabulary.eos_id, pads_left=True)


def _most(prompt: Prompt, most: int | None, default: int) -> int:
    number = len(prompt.residues)
    if most is None:
        most = default
    if number > most:
        raise ValueError(
            f"{prompt.name} has {plurals.count(number, 'residue')}, more than --length="
            f"{most}. Raise it."
        )
    return most


def allowed_ids(
    model: frozen_models.Model, letters: str
) -> tuple[Bool[np.ndarray, " vocab"], dict[int, str]]:
    """Which ids may be sampled, and the letter of every residue's id.

    Args:
      model: The model.
      letters: Letters that are allowed besides the 20 standard amino acids.

    Raises:
      ValueError: A letter has no id of its own.
    """
    vocabulary = model.vocabulary
    standard = vocabularies.STANDARD
    names = dict(zip(vocabulary.encode(standard).tolist(), standard, strict=True))
    names.setdefault(vocabulary.x_id, "X")
    allowed = np.zeros(model.config.vocab_size, bool)
    allowed[vocabulary.residue_ids] = True
    for letter in letters:
        if letter == "X":
            index = vocabulary.x_id
        elif letter in vocabularies.READ_AS_X and letter in vocabulary.pieces:
            index = vocabulary.pieces.index(letter)
        else:
            raise ValueError(
                f"--allow={letters}: {letter!r} is not a letter besides the 20 amino "
                f"acids that {model.name} has an id for."
            )
        names[index] = letter
        allowed[index] = True
    return allowed, names
