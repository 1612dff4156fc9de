"""Finds a family's model in a state dict, whatever it is wrapped in.

People save more than the bare model: wrapped by DataParallel or torch.compile, as an
attribute of a module of their own, with the head of a downstream task beside it. Names
come out as the family's own class has them; what is not the model's is named.
"""

from collections.abc import Mapping
import re
from typing import NamedTuple

import numpy as np

# Parts of names that DataParallel, torch.compile, FSDP and the like put in.
_WRAPPERS = frozenset(
    """
    _checkpoint_wrapped_module _forward_module _fsdp_wrapped_module _orig_mod module
    """.split()
)
# Parts of names that say a head of a downstream task, wherever it was attached.
_HEAD_PARTS = re.compile(
    r"(^|\.)(\w*classifier|classification_head|qa_outputs|logits_proj|sequence_summary"
    r"|score|head|heads|\w+_head)(\.|$)"
)


class _Layout(NamedTuple):
    """Names of a family.

    Attributes:
      base: With which names of the encoder begin, beside heads; "" if with nothing.
      anchor: A parameter of the encoder, without `base`.
      parts: How names of the encoder go on after `base`.
      heads: How the names of the family's own heads begin.
    """

    base: str
    anchor: str
    parts: tuple[str, ...]
    heads: tuple[str, ...]


_EMBEDDINGS = "embeddings.word_embeddings.weight"
_T5_ANCHOR = "block.0.layer.0.SelfAttention.q.weight"
_LAYOUTS = {
    "t5": _Layout(
        "",
        f"encoder.{_T5_ANCHOR}",
        ("shared", "encoder", "decoder", "lm_head"),
        (),
    ),
    "bert": _Layout(
        "bert.",
        _EMBEDDINGS,
        ("embeddings", "encoder", "pooler"),
        ("cls.predictions.", "cls.seq_relationship."),
    ),
    "albert": _Layout(
        "albert.",
        _EMBEDDINGS,
        ("embeddings", "encoder", "pooler"),
        ("predictions.", "sop_classifier."),
    ),
    "electra": _Layout(
        "electra.",
        _EMBEDDINGS,
        ("embeddings", "embeddings_project", "encoder"),
        ("discriminator_predictions.", "generator_predictions.", "generator_lm_head."),
    ),
    "xlnet": _Layout(
        "transformer.",
        "word_embedding.weight",
        ("word_embedding", "mask_emb", "layer"),
        ("lm_loss.",),
    ),
    "transformer_xl": _Layout(
        "transformer.",
        "word_emb.emb_layers.0.weight",
        ("word_emb", "layers", "r_w_bias", "r_r_bias", "pos_emb"),
        ("crit.",),
    ),
}
# An encoder of T5 that was saved by itself, without the class around it.
_T5_STACK = _Layout(
    "encoder.", _T5_ANCHOR, ("block", "final_layer_norm", "embed_tokens"), ()
)


def of_model(
    arrays: Mapping[str, np.ndarray], family: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays of a model under the names of its own class.

    Args:
      arrays: A state dict.
      family: Key of `families.FAMILIES`.

    Returns:
      The arrays, and the names of those that are left out: heads of downstream tasks,
      and what belongs to a module around the model.

    Raises:
      ValueError: There are several such models, or adapters that were not merged.
    """
    _refuse_adapters(arrays)
    arrays = _unwrapped(arrays)
    layout = _LAYOUTS[family]
    places = _places(arrays, layout)
    if not places and family == "t5":
        layout = _T5_STACK
        places = [x for x in _places(arrays, layout) if not x.endswith("decoder.")]
    if not places:
        return arrays, []  # What is missing is named where parameters are compared.
    place = _choose(places, layout)
    around = place.removesuffix(layout.base) if layout.base else place
    model, left_out = {}, []
    for name, array in arrays.items():
        ours = _name_in_model(name, place, around, layout)
        if ours is None:
            left_out.append(name)
        else:
            model[ours] = array
    return model, left_out


def _refuse_adapters(arrays: Mapping[str, np.ndarray]) -> None:
    names = [name for name in arrays if ".lora_" in name or ".base_layer." in name]
    if names:
        raise ValueError(
            f"{len(names)} arrays belong to adapters that were not merged, such as "
            f"{names[0]}. Merge them in peft with model.merge_and_unload(), and save "
            "that."
        )


def _unwrapped(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {}
    for name, array in arrays.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        plain = ".".join(parts)
        if plain in renamed:
            raise ValueError(f"{name} is there twice: also without what wraps it.")
        renamed[plain] = array
    return renamed


def _places(arrays: Mapping[str, np.ndarray], layout: _Layout) -> list[str]:
    """What stands before the encoder's names, of every encoder there is."""
    anchor = layout.anchor
    return sorted(
        name.removesuffix(anchor)
        for name in arrays
        if name == anchor or name.endswith(f".{anchor}")
    )


def _choose(places: list[str], layout: _Layout) -> str:
    usual = [place for place in places if place in ("", layout.base)]
    if len(places) == 1 or len(usual) == 1:
        return (usual or places)[0]
    raise ValueError(
        f"There are {len(places)} models of this family in it, named "
        f"{', '.join(f'{place}*' for place in places)}. Save the one to use by itself."
    )


def _name_in_model(name: str, place: str, around: str, layout: _Layout) -> str | None:
    """The name in the model's own class; None if it is not the model's."""
    if name.startswith(around):
        own = name.removeprefix(around)
        if own.startswith(layout.heads):
            return own
    if not name.startswith(place):
        return None
    rest = name.removeprefix(place)
    if rest.partition(".")[0] in layout.parts:
        inside = rest.partition(".")[2]
        return None if _HEAD_PARTS.search(inside) else f"{layout.base}{rest}"
    # Unknown parameters of a module of its own could change what it computes.
    is_own = place and place == f"{around}{layout.base}"
    if is_own and layout.base and not _HEAD_PARTS.search(rest):
        return f"{layout.base}{rest}"
    return None
