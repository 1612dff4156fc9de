"""Folders of trained heads: what they predict, from which encoder, and their weights.

head.json           sizes, tasks with their classes, encoder, versions
head.safetensors    parameters, named like "hidden/kernel"
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

import prottrans_jax
from prottrans_jax import setting_trees, types
from prottrans_jax.downstream import heads, labelled, tmbed_cnn
from prottrans_jax.files import folders, json_text, paths, writing
from prottrans_jax.interop import safetensors

FOLDER, SETTINGS, WEIGHTS = "head", "head.json", "head.safetensors"
_FORMAT = 1
_CLASSES = {cls.__name__: cls for cls in (*heads.HEADS.values(), tmbed_cnn.TmbedCnn)}
# Linen adds these to the fields of a module.
_LINEN_FIELDS = ("parent", "name")


@dataclasses.dataclass(frozen=True)
class EncoderId:
    """The encoder whose vectors a head was trained on.

    Attributes:
      name: Name under which it was loaded.
      fingerprint: Hash of its weights; "": unknown, and not compared.
      d_model: Size of its vectors.
      dtype: Type of its products.
      prefix: Piece before each protein.
      source: Where it was loaded from: a name, or an absolute path.
    """

    name: str
    fingerprint: str
    d_model: int
    dtype: str = ""
    prefix: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Head:
    """A trained head.

    Attributes:
      module: Linen module, see `heads`.
      params: Its parameters.
      tasks: What its outputs predict, in their order.
      encoder: The encoder whose vectors it takes.
      about: What else is known, e.g. metrics on validation data; plain JSON.
    """

    module: nn.Module
    params: types.Params
    tasks: Sequence[labelled.Task]
    encoder: EncoderId
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(
        self,
        vectors: Float[Array, "batch length d_model"],
        mask: Bool[Array, "batch length"],
    ) -> Float[Array, "batch *length outputs"]:
        """Probabilities of the classes of each task, or the numbers; float32."""
        apply: Any = self.module.apply
        outputs = apply(
            {"params": self.params},
            jnp.asarray(vectors, jnp.float32),
            mask,
            deterministic=True,
        )
        ends = np.cumsum([task.num_outputs for task in self.tasks])
        parts = jnp.split(outputs, ends[:-1], axis=-1)
        return jnp.concatenate(
            [
                part if task.is_regression else jax.nn.softmax(part, axis=-1)
                for task, part in zip(self.tasks, parts, strict=True)
            ],
            axis=-1,
        )

    @property
    def level(self) -> str:
        """ "residue" or "protein"."""
        return self.tasks[0].level

    def check_encoder(self, encoder: Any) -> None:
        """Raises unless the encoder is the one whose vectors the head was trained on.

        Raises:
          ValueError: It is another one; names both.
        """
        own = self.encoder
        if own.d_model != encoder.d_model or own.fingerprint not in (
            "",
            encoder.fingerprint,
        ):
            raise ValueError(
                f"the head predicts from vectors of {own.name!r} (weights "
                f"{own.fingerprint[:12] or 'unknown'}, {own.d_model} numbers), not of "
                f"{encoder.name!r} (weights {encoder.fingerprint[:12]}, "
                f"{encoder.d_model} numbers). Give the model that it was trained on."
            )
        if own.prefix != encoder.prefix_piece:
            raise ValueError(
                f"the head was trained with --prefix {own.prefix!r}, not "
                f"{encoder.prefix_piece!r}."
            )


def save(path: str | os.PathLike, head: Head) -> None:
    """Writes the folder of a head; it appears once it is complete."""
    content = {
        "format": _FORMAT,
        "head": setting_trees.of(
            "head", head.module, lambda name, _: name in _LINEN_FIELDS
        ),
        "tasks": [dataclasses.asdict(task) for task in head.tasks],
        "encoder": dataclasses.asdict(head.encoder),
        "about": dict(head.about),
        "prottrans_version": prottrans_jax.__version__,
    }
    flat = traverse_util.flatten_dict(jax.device_get(head.params), sep="/")
    place = paths.place(path, "head")
    if folders.exists(place):
        writing.remove(place)
    with writing.new_folder(place) as folder:
        safetensors.save(folder / WEIGHTS, {k: np.asarray(v) for k, v in flat.items()})
        (folder / SETTINGS).write_text(json.dumps(content, indent=1) + "\n")


def load(path: str | os.PathLike) -> Head:
    """Reads the folder of a head, or of the run that trained it.

    Raises:
      FileNotFoundError: There is no head at the path.
      ValueError: The folder is damaged, or of a later version.
    """
    place = paths.place(path, "--head")
    inside = place / FOLDER
    with folders.local_copy(inside if folders.exists(inside) else place) as folder:
        if not (folder / SETTINGS).is_file():
            raise FileNotFoundError(
                f"{path}: there is no head (no {SETTINGS} in it). Give the folder of a "
                "finished run of prottrans finetune."
            )
        content = json_text.read_object(folder / SETTINGS)
        try:
            if content["format"] != _FORMAT:
                raise ValueError(
                    f"format {content['format']}; this version reads {_FORMAT}"
                )
            fields = dict(content["head"])
            module = _CLASSES[fields.pop(setting_trees.TYPE)](**fields)
            tasks = tuple(
                labelled.Task(**{**task, "classes": tuple(task["classes"])})
                for task in content["tasks"]
            )
            encoder = EncoderId(**content["encoder"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: {SETTINGS} does not describe a head of this version: {error}."
            ) from None
        arrays = {
            name: np.array(array)
            for name, array in safetensors.load(folder / WEIGHTS).items()
        }
    params = traverse_util.unflatten_dict(arrays, sep="/")
    _check_shapes(path, module, encoder.d_model, params)
    return Head(module, params, tasks, encoder, content.get("about", {}))


def _check_shapes(path, module: nn.Module, d_model: int, params) -> None:
    """Raises ValueError unless the arrays are those of the module."""

    def init():
        x, mask = jnp.zeros((1, 1, d_model)), jnp.ones((1, 1), bool)
        return module.init(jax.random.key(0), x, mask, deterministic=True)["params"]

    expected = jax.tree.map(np.shape, jax.eval_shape(init))
    if jax.tree.map(np.shape, params) != expected:
        raise ValueError(
            f"{path}: the arrays in {WEIGHTS} are not those that {SETTINGS} describes. "
            "The folder is damaged, or was changed."
        )
