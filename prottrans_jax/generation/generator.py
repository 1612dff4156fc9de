"""Proteins for many prompts, in batches.

  model = loading.load_model("prot_t5_xl_u50")
  prompts = [prompts.Prompt("mine", "MKTXXXXXXQRQISF")]
  proteins = generator.generate(model, prompts, generator.Options(number=5))

The draws of protein k of prompt j depend on (seed, j, k) and on its own tokens alone,
not on the batch, its size, or the number of proteins. Logits are computed for a batch
at once and may differ in the last bits between sizes of batches.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from prottrans_jax.config import setting_types
from prottrans_jax.encoders import frozen_models
from prottrans_jax.generation import decoding, prompts, sampling

# Lengths of arrays are multiples of this, so that few programs are compiled.
_BUCKET = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of `generate`.

    Attributes:
      number: Proteins for each prompt.
      length: Maximum length in residues, prompt included; see `prompts.Lengths`.
      min_length: Minimum length.
      rewrite: Whether T5 samples residues that its input gives.
      allow: Letters that are allowed besides the 20 standard amino acids.
      seed: Seed of the draws.
      batch_size: Proteins that are generated together.
      choice: How tokens are chosen.
    """

    number: int = 1
    length: int | None = None
    min_length: int | None = None
    rewrite: bool = False
    allow: str = ""
    seed: int = 0
    batch_size: int = 16
    choice: sampling.Sampling = sampling.DEFAULT

    def __post_init__(self):
        setting_types.check_fields(self)
        for name in ("number", "length", "min_length", "batch_size"):
            setting_types.check_range(name, getattr(self, name), 1)
        if None not in (self.length, self.min_length) and self.min_length > self.length:
            raise ValueError(
                f"min_length={self.min_length} is more than length={self.length}."
            )
        if self.choice.greedy and self.number > 1:
            raise ValueError(
                f"number={self.number} with greedy: all proteins of a prompt would be "
                "the same. Drop one of the two."
            )


@dataclasses.dataclass(frozen=True)
class Protein:
    """A generated protein.

    Attributes:
      prompt: Name of its prompt.
      number: Its number among those of the prompt, from 1.
      sequence: Residues, those of the prompt included.
      log_likelihood: Sum of log p of the sampled tokens, as the model gives them, in
        nats; see `decoding.Decoded`.
      num_sampled: Number of sampled tokens.
      ended: Whether the model ended it; if not, it has the maximum length.
    """

    prompt: str
    number: int
    sequence: str
    log_likelihood: float
    num_sampled: int
    ended: bool


def generate(
    model: frozen_models.Model,
    starts: Sequence[prompts.Prompt],
    options: Options,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Protein]:
    """Generates proteins, in the order of their prompts.

    Args:
      model: A T5, an XLNet or a Transformer-XL, from `loading.load_model`.
      starts: Prompts; see `prompts` for what they mean to each family.
      options: Settings.
      on_progress: Called with the number of finished proteins and of all.

    Raises:
      ValueError: The model cannot generate, or a prompt does not fit the options.
    """
    lengths = prompts.Lengths(options.length, options.min_length, options.rewrite)
    plan = prompts.plan(model, lengths)
    allowed, letters = prompts.allowed_ids(model, options.allow)
    rows = [plan.row(index, prompt) for index, prompt in enumerate(starts)]
    # Rows of similar lengths together; a stable order of everything else.
    rows.sort(key=lambda row: (len(row.start), row.max_length))
    work = [(row, number) for row in rows for number in range(options.number)]
    proteins: dict[tuple[int, int], Protein] = {}
    size = min(options.batch_size, len(work))
    for batch in _batches(work, size):
        arrays, start = _arrays(plan, batch, size, options.seed, allowed)
        decoded = jax.device_get(
            decoding.decode(plan.module, options.choice, model.params, start, arrays)
        )
        for index, (row, number) in enumerate(batch):
            tokens = decoded.tokens[index, : decoded.length[index]]
            proteins[row.prompt, number] = Protein(
                prompt=starts[row.prompt].name,
                number=number + 1,
                sequence="".join(letters[x] for x in (*row.history, *tokens)),
                log_likelihood=float(decoded.log_likelihood[index]),
                num_sampled=int(decoded.num_sampled[index]),
                ended=bool(decoded.ended[index]),
            )
        on_progress(len(proteins), len(work))
    return [proteins[key] for key in sorted(proteins)]


def _batches(work: list, size: int) -> Iterator[list]:
    rest = iter(work)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _arrays(plan: prompts.Plan, batch, size: int, seed: int, allowed):
    """Arrays of a batch, filled up to `size` rows with rows of length 0."""
    rows = [row for row, _ in batch]
    fill = [0] * (size - len(rows))
    width = _bucket(max(len(row.start) for row in rows))
    slots = _bucket(max(row.max_length for row in rows))

    def padded(values, width, filler, left=False):
        array = np.full((size, width), filler, np.int32)
        for index, ids in enumerate(values):
            begin = width - len(ids) if left else 0
            array[index, begin : begin + len(ids)] = ids
        return jnp.asarray(array)

    tokens = padded([row.start for row in rows], width, 0, plan.pads_left)
    start: tuple[jax.Array, ...] = (tokens,)
    if plan.pads_left:
        num_padding = [width - len(row.start) for row in rows]
        start = tokens, jnp.asarray(num_padding + fill, jnp.int32)
    root = jax.random.key(seed)
    keys = [
        jax.random.fold_in(jax.random.fold_in(root, row.prompt), number)
        for row, number in batch
    ]
    keys += [root] * len(fill)
    history_width = width if plan.pads_left else 0
    none = sampling.NO_TOKEN
    arrays = decoding.Rows(
        history=padded([row.history for row in rows], history_width, none, left=True),
        forced=padded([row.forced for row in rows], slots, none),
        min_length=jnp.asarray([row.min_length for row in rows] + fill),
        max_length=jnp.asarray([row.max_length for row in rows] + fill),
        keys=jnp.stack(keys),
        allowed=jnp.asarray(allowed),
        end=jnp.int32(plan.end),
    )
    return arrays, start


def _bucket(length: int) -> int:
    return -(-length // _BUCKET) * _BUCKET
