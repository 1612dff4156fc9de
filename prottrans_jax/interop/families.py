"""Model families by name: modules, tables of names and special ids of each.

Modules are imported on first use, so that importing this list is cheap.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import importlib
import types
from typing import Any

import jax.numpy as jnp
import numpy as np

from prottrans_jax import types as array_types
from prottrans_jax.files import paths
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.proteins import vocabulary as vocabularies


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
      name: Its key in `FAMILIES`.
      model_module: Module with the configuration and the Linen model.
      config_name: Class of the configuration.
      model_name: Class of the model; has `encode(tokens, mask, *, deterministic)`.
      interop_module: Module with the table of Hugging Face's names: `config_from_hf`,
        `config_to_hf`, `params_from_hf`, `params_to_hf`.
      vocabulary_name: Object of `prottrans_jax.proteins.vocabulary`.
      prefix: Roles of the special pieces before the residues, e.g. ("cls",).
      suffix: Those after them, e.g. ("sep",).
      left_pad: Whether the released model was used with padding on the left.
    """

    name: str
    model_module: str
    config_name: str
    model_name: str
    interop_module: str
    vocabulary_name: str
    prefix: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()
    left_pad: bool = False

    @property
    def module(self) -> types.ModuleType:
        """Module of the model."""
        return importlib.import_module(self.model_module)

    @property
    def table(self) -> types.ModuleType:
        """Module with Hugging Face's names."""
        return importlib.import_module(self.interop_module)

    @property
    def config_class(self) -> type:
        """Class of the configuration."""
        return getattr(self.module, self.config_name)

    @property
    def model_class(self) -> type:
        """Class of the Linen model."""
        return getattr(self.module, self.model_name)

    @property
    def vocabulary(self) -> vocabularies.Vocabulary:
        """Letters and special pieces by id."""
        return getattr(vocabularies, self.vocabulary_name)

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """Ids before the residues."""
        return _ids(self.vocabulary, self.prefix)

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        """Ids after the residues."""
        return _ids(self.vocabulary, self.suffix)


def _ids(
    vocabulary: vocabularies.Vocabulary, roles: tuple[str, ...]
) -> tuple[int, ...]:
    return tuple(getattr(vocabulary, f"{role}_id") for role in roles)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Contents of another library's checkpoint.

    Attributes:
      family: Family of the model.
      config: Configuration of the model.
      compute: How it is computed: layers not stacked, types of the files by default.
      params: Parameters, numpy; views of the mapped files unless they are converted.
      stored_dtype: Floating-point type in the files; the widest if there are several.
      source: Folder or file of the checkpoint.
      form: Description of the file format.
      attributes: Contents of `config.json`; empty without one.
      own_vocabulary: Vocabulary of the checkpoint; None: that of the family.
      unknown_ids: Why the ids of residues are unknown, and what to do about it; "" if
        they are known.
      left_out: Names of arrays that do not belong to the model, such as task heads.
    """

    family: Family
    config: array_types.ModelConfig
    compute: compute_config.ComputeConfig
    params: array_types.Params
    stored_dtype: np.dtype
    source: paths.Place
    form: str
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own_vocabulary: vocabularies.Vocabulary | None = None
    unknown_ids: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def vocabulary(self) -> vocabularies.Vocabulary:
        """Letters and special pieces by id."""
        return self.own_vocabulary or self.family.vocabulary

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """Ids before the residues."""
        return _ids(self.vocabulary, self.family.prefix)

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        """Ids after the residues."""
        return _ids(self.vocabulary, self.family.suffix)


def _family(name: str, config: str, model: str, **fields: Any) -> Family:
    package = __name__.rsplit(".", 2)[0]
    return Family(
        name,
        f"{package}.models.{name}",
        config,
        model,
        f"{package}.interop.hf_{name}",
        **fields,
    )


_BERT: dict[str, Any] = {
    "vocabulary_name": "PROT_BERT",
    "prefix": ("cls",),
    "suffix": ("sep",),
}
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _family("t5", "T5Config", "T5", vocabulary_name="PROT_T5", suffix=("eos",)),
        _family("bert", "BertConfig", "Bert", **_BERT),
        _family(
            "albert",
            "AlbertConfig",
            "Albert",
            **{**_BERT, "vocabulary_name": "PROT_ALBERT"},
        ),
        _family("electra", "ElectraEncoderConfig", "ElectraEncoder", **_BERT),
        _family(
            "xlnet",
            "XLNetConfig",
            "XLNet",
            vocabulary_name="PROT_XLNET",
            suffix=("sep", "cls"),
            left_pad=True,
        ),
        _family(
            "transformer_xl",
            "TransformerXLConfig",
            "TransformerXL",
            vocabulary_name="PROT_TXL",
            prefix=("eos",),
        ),
    )
}

# `model_type` of a config.json. Class names in `architectures` begin with the same
# words; old files have `architectures` only.
_MODEL_TYPES = {
    "t5": "t5",
    "bert": "bert",
    "albert": "albert",
    "electra": "electra",
    "xlnet": "xlnet",
    "transfo-xl": "transformer_xl",
}
# Attributes that only one family has; used for files that name no class.
_TELLTALES = {
    "d_kv": "t5",
    "inner_group_num": "albert",
    "generator_size": "electra",
    "d_inner": "xlnet",
    "adaptive": "transformer_xl",
    "hidden_size": "bert",
}


def family_of(attributes: Mapping[str, Any]) -> Family:
    """Family of a Hugging Face checkpoint.

    Args:
      attributes: Contents of its `config.json`.

    Raises:
      ValueError: The family is not supported, or the file does not name it.
    """
    if "model_type" in attributes:
        model_type = attributes["model_type"]
        if model_type not in _MODEL_TYPES:
            raise ValueError(
                f"model_type={model_type!r} is not supported. Known: "
                f"{', '.join(_MODEL_TYPES)}."
            )
        return FAMILIES[_MODEL_TYPES[model_type]]
    for architecture in attributes.get("architectures") or ():
        for model_type, name in _MODEL_TYPES.items():
            if architecture.lower().startswith(model_type.replace("-", "")):
                return FAMILIES[name]
    names = [name for key, name in _TELLTALES.items() if key in attributes]
    if not names:
        raise ValueError(
            "config.json has neither model_type nor architectures, nor any attribute "
            "that identifies the family. Add model_type, one of "
            f"{', '.join(_MODEL_TYPES)}."
        )
    return FAMILIES["transformer_xl" if "transformer_xl" in names else names[0]]


def family_of_config(config: array_types.ModelConfig) -> Family:
    """Family of a configuration."""
    for family in FAMILIES.values():
        if type(config) is family.config_class:
            return family
    raise ValueError(
        f"{type(config).__name__} is no family's configuration. Known: "
        f"{', '.join(family.config_name for family in FAMILIES.values())}."
    )


def widest_dtype(arrays: Iterable[Any]) -> np.dtype:
    """Floating-point type that holds all arrays (objects with a dtype) without loss."""
    dtypes = {x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)}
    if not dtypes:
        raise ValueError("The checkpoint has no floating-point array.")
    return np.dtype(jnp.result_type(*dtypes))


def split_overrides(
    config_class: type, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of a family's configuration, and those of `ComputeConfig`.

    `fused_attention` is not accepted: it is wrong for rows of several sequences.

    Raises:
      ValueError: A name is a field of neither.
    """
    sizes = [field.name for field in dataclasses.fields(config_class)]
    computing = [
        field.name
        for field in dataclasses.fields(compute_config.ComputeConfig)
        if field.name != "fused_attention"
    ]
    for name in overrides:
        if name not in (*sizes, *computing):
            raise ValueError(
                f"{name}: {config_class.__name__} has no such field. It has "
                f"{', '.join(sizes)}; the computation has {', '.join(computing)}."
            )
    return (
        {name: x for name, x in overrides.items() if name in sizes},
        {name: x for name, x in overrides.items() if name in computing},
    )


def as_stored(
    stored: np.dtype, overrides: Mapping[str, Any]
) -> compute_config.ComputeConfig:
    """How a checkpoint is computed unless `overrides` say otherwise.

    Layers are not stacked, and parameters keep the type of the files, so that they need
    no memory until they are read.
    """
    return compute_config.ComputeConfig(
        **{"scan_layers": False, "param_dtype": stored, **overrides}
    )
