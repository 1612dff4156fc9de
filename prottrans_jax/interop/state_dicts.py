"""Extracts a family's model from a state dict.

A model may be saved wrapped by DataParallel or torch.compile, as an attribute of
another module, or with the head of a downstream task. Arrays get the names of the
family's class; names of arrays that do not belong to the model are returned.
"""

from collections.abc import Mapping
import re
from typing import NamedTuple

import numpy as np

# Parts of names that DataParallel, torch.compile, FSDP and similar wrappers insert.
_WRAPPERS = frozenset(
    """
    _checkpoint_wrapped_module _forward_module _fsdp_wrapped_module _orig_mod module
    """.split()
)
# Parts of names of downstream tasks' heads, wherever they are attached.
_HEAD_PARTS = re.compile(
    r"(^|\.)(\w*classifier|classification_head|qa_outputs|logits_proj|sequence_summary"
    r"|score|head|heads|\w+_head)(\.|$)"
)


class _Layout(NamedTuple):
    """Names of a family.

    Attributes:
      base: Prefix of the encoder's names if there are heads; may be "".
      anchor: A parameter of the encoder, without `base`.
      parts: First components of the encoder's names after `base`.
      heads: Prefixes of the names of the family's own heads.
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
# An encoder of T5 that was saved by itself, without `T5EncoderModel`.
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
      and arrays of a module around the model.

    Raises:
      ValueError: There are several models of the family, or unmerged adapters.
    """
    _refuse_adapters(arrays)
    arrays = _unwrapped(arrays)
    layout = _LAYOUTS[family]
    places = _places(arrays, layout)
    if not places and family == "t5":
        layout = _T5_STACK
        places = [x for x in _places(arrays, layout) if not x.endswith("decoder.")]
    if not places:
        # Missing arrays are reported by the comparison of shapes.
        return arrays, []
    place = _choose(places, layout)
    around = place.removesuffix(layout.base) if layout.base else place
    model, left_out = {}, []
    for name, array in arrays.items():
        name_in_model = _name_in_model(name, place, around, layout)
        if name_in_model is None:
            left_out.append(name)
        else:
            model[name_in_model] = array
    return model, left_out


def _refuse_adapters(arrays: Mapping[str, np.ndarray]) -> None:
    names = [name for name in arrays if ".lora_" in name or ".base_layer." in name]
    if names:
        raise ValueError(
            f"{len(names)} arrays belong to adapters that were not merged, such as "
            f"{names[0]}. Merge them in peft with model.merge_and_unload(), and save "
            "the result."
        )


def _unwrapped(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {}
    for name, array in arrays.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        plain = ".".join(parts)
        if plain in renamed:
            raise ValueError(f"{name} occurs twice: also without its wrapper's prefix.")
        renamed[plain] = array
    return renamed


def _places(arrays: Mapping[str, np.ndarray], layout: _Layout) -> list[str]:
    """Prefixes of the names of all encoders in a state dict."""
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
        f"It holds {len(places)} models of this family, named "
        f"{', '.join(f'{place}*' for place in places)}. Save the one to use by itself."
    )


def _name_in_model(name: str, place: str, around: str, layout: _Layout) -> str | None:
    """The name in the family's class; None if it does not belong to the model."""
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
    # Unknown parameters inside the model's own module could change its output.
    is_own = place and place == f"{around}{layout.base}"
    if is_own and layout.base and not _HEAD_PARTS.search(rest):
        return f"{layout.base}{rest}"
    return None
