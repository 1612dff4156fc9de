"""Settings that T5X's and Mesh-TensorFlow's formats lack, as JSON beside a checkpoint.

Both formats store arrays only; their readers take other settings from a configuration.
This library reads the JSON; other programs ignore it.
"""

from collections.abc import Collection, Mapping
import json
import pathlib
from typing import Any, NamedTuple

from absl import logging

from prottrans_jax.files import json_text
from prottrans_jax.models import t5
from prottrans_jax.proteins import vocabulary

NAME = "prottrans_jax.json"
# Fields of T5Config that do not follow from shapes.
_FIELDS = ("mlp_activations", "norm_epsilon", "relative_max_distance", "dropout_rate")
# Settings without the file: the defaults of T5 and T5 v1.1.
_ASSUMED = {
    "norm_epsilon": "norm_epsilon=1e-06",
    "relative_max_distance": "relative_max_distance=128",
    "mlp_activations": "GELU in gated MLPs, ReLU in others",
}


class Notes(NamedTuple):
    """Contents of the file.

    Attributes:
      settings: Fields of the configuration.
      pieces: Id of every piece; None if unknown.
    """

    settings: Mapping[str, Any]
    pieces: Mapping[str, int] | None


def write(
    path: pathlib.Path, config: t5.T5Config, ids: vocabulary.Vocabulary | None
) -> None:
    """Writes the settings of a model, and its ids if known."""
    content: dict[str, Any] = {
        "settings": {name: getattr(config, name) for name in _FIELDS}
    }
    if ids is not None:
        content["pieces"] = {piece: i for i, piece in enumerate(ids.pieces)}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")


def read(path: pathlib.Path, overrides: Collection[str] = ()) -> Notes:
    """Reads the notes of a checkpoint; without a file, warns and returns empty notes.

    Args:
      path: The file.
      overrides: Fields of the configuration that the caller sets.

    Raises:
      ValueError: The file is damaged.
    """
    if not path.is_file():
        assumed = [text for name, text in _ASSUMED.items() if name not in overrides]
        if assumed:
            logging.warning(
                "%s does not exist. Its settings do not follow from shapes, so T5's "
                "defaults are used: %s. If the model has other settings, its vectors "
                "will be wrong.",
                path,
                "; ".join(assumed),
            )
        return Notes({}, None)
    try:
        content = json_text.parse(path.read_text(encoding="utf-8"))
        settings, pieces = dict(content["settings"]), content.get("pieces")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}).") from error
    unknown = sorted(settings.keys() - set(_FIELDS))
    if unknown:
        raise ValueError(f"{path} has unknown settings: {unknown}.")
    if "mlp_activations" in settings:
        settings["mlp_activations"] = tuple(settings["mlp_activations"])
    return Notes(settings, pieces)


def lost(config: t5.T5Config) -> list[str]:
    """Descriptions of settings that differ from the default of other readers.

    T5X and Mesh-TensorFlow take these from a gin file: by default T5's values.
    """
    usual = {
        "norm_epsilon": 1e-6,
        "relative_max_distance": 128,
        "mlp_activations": (
            ("relu",) if len(config.mlp_activations) == 1 else ("gelu", "linear")
        ),
    }
    return [
        f"{name}={getattr(config, name)!r} (by default {value!r})"
        for name, value in usual.items()
        if getattr(config, name) != value
    ]
