"""What T5X and Mesh-TensorFlow have no place for, in a small JSON beside a checkpoint.

Both keep arrays alone; a reader takes the rest from a configuration of its own. Ours
reads this file back, others do not know it.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any, NamedTuple

from prottrans_jax.models import t5
from prottrans_jax.proteins import vocabulary

NAME = "prottrans_jax.json"
# Fields of T5Config that no shape tells.
_FIELDS = ("mlp_activations", "norm_epsilon", "relative_max_distance", "dropout_rate")


class Notes(NamedTuple):
    """What stands in the file.

    Attributes:
      settings: Fields of the configuration.
      pieces: Id of every piece; None where it is not known.
    """

    settings: Mapping[str, Any]
    pieces: Mapping[str, int] | None


def write(
    path: pathlib.Path, config: t5.T5Config, ids: vocabulary.Vocabulary | None
) -> None:
    """Writes the settings of a model, and its ids if they are known."""
    content: dict[str, Any] = {
        "settings": {name: getattr(config, name) for name in _FIELDS}
    }
    if ids is not None:
        content["pieces"] = {piece: i for i, piece in enumerate(ids.pieces)}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")


def read(path: pathlib.Path) -> Notes:
    """The notes of a checkpoint; empty if there are none.

    Raises:
      ValueError: The file is damaged.
    """
    if not path.is_file():
        return Notes({}, None)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, pieces = dict(content["settings"]), content.get("pieces")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}).") from error
    unknown = sorted(settings.keys() - set(_FIELDS))
    if unknown:
        raise ValueError(f"{path} has settings that are not known: {unknown}.")
    if "mlp_activations" in settings:
        settings["mlp_activations"] = tuple(settings["mlp_activations"])
    return Notes(settings, pieces)


def lost(config: t5.T5Config) -> list[str]:
    """Settings that another reader would not take from the shapes, one text each.

    T5X and Mesh-TensorFlow have these in a gin file: by default T5's own values.
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
