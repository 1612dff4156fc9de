"""Where parameters come from: own runs and checkpoints of other libraries.

One name for all of them, in `load_encoder`, `trainer.train.init_from`, gin's
INITIAL_CHECKPOINT_PATH and `python -m prottrans_jax.convert --input`:

    hf:FOLDER or hf:OWNER/NAME   Hugging Face; short names as hf:prot_bert
    t5x:FOLDER                   T5X, any generation
    mtf:FOLDER                   Mesh-TensorFlow's T5
    FOLDER                       an own run: model_dir, its checkpoints, or one step

An ELECTRA that trains both its parts takes two: "hf:GENERATOR,DISCRIMINATOR".
"""

import ast
from collections.abc import Mapping
import dataclasses
import os
import pathlib
import re
from typing import Any

from absl import logging
from flax import linen as nn
from flax import traverse_util
import jax
from jaxtyping import PyTree
import numpy as np

from prottrans_jax.checkpoints import checkpointing, run_identity, stored_arrays
from prottrans_jax.files import memory_map, paths
from prottrans_jax.interop import (
    checkpoint_ids,
    families,
    huggingface,
    layer_stacks,
    mesh_tf,
    t5x,
    vocabularies,
)
from prottrans_jax.models import electra

_LAYERS = "layers"
# Settings that change how or when something is computed, or that a file need not know.
_FREE = frozenset(
    """
    attention attention_block_size attention_dropout_rate bi_data dropout_rate dtype
    flash frequencies initializer_range lm_head max_length mem_length order_head
    param_dtype pooler remat_policy replaced_head reuse_length scan_layers
    """.split()
)
# No shape tells them, so they are guesses where a checkpoint has no configuration.
_GUESSED = frozenset({"mlp_activations", "norm_epsilon", "relative_max_distance"})


def read(
    source: str | os.PathLike,
    *,
    download: bool = False,
    vocabulary: str | os.PathLike | None = None,
    **overrides: Any,
) -> families.Checkpoint:
    """Reads a model from wherever it is; see the head of this file.

    A folder without a prefix may be of any of these kinds.

    Args:
      source: Where.
      download: Whether a repository of the hub may be fetched.
      vocabulary: Tokenizer's file that says which id a residue has; None: the place
        itself says it. See `interop.vocabularies.load`.
      **overrides: Fields of the family's configuration, such as `param_dtype`.

    Raises:
      FileNotFoundError: It is not there.
      ValueError: It is there, but is damaged or fits no model of ours.
    """
    kind, place = split(source)
    kind = kind or _kind_of(pathlib.Path(place))
    if kind == "hf":
        return huggingface.read(
            place, download=download, vocabulary=vocabulary, **overrides
        )
    if kind in ("t5x", "mtf"):
        module = {"t5x": t5x, "mtf": mesh_tf}[kind]
        found = module.read(place, **overrides)
        if vocabulary is not None:
            return checkpoint_ids.named(found, vocabulary)
        return checkpoint_ids.of_notes(found)
    if vocabulary is not None:
        raise ValueError(
            f"{source} is a run of this library, whose ids are known: leave out "
            f"--vocabulary {vocabulary}."
        )
    return _read_run(place, overrides)


def split(source: str | os.PathLike) -> tuple[str, str]:
    """Kind and place of a source; the kind is "" if no prefix says it.

    Raises:
      paths.PathError: It is a URL, or in the home folder of an unknown user.
    """
    text = paths.source(source, "checkpoint")
    kind, colon, place = text.partition(":")
    return (kind, place) if colon and kind in paths.SOURCE_KINDS else ("", text)


def model_of(found: families.Checkpoint) -> nn.Module:
    """The Linen model whose parameters were read."""
    if isinstance(found.config, electra.ElectraConfig):
        return electra.Electra(found.config)
    return found.family.model_class(found.config)


def encoder_of(
    found: families.Checkpoint, network: str | None = None
) -> families.Checkpoint:
    """What proteins are embedded with: of an ELECTRA in training one of its networks.

    An XLNet that was trained on rows in both directions reads all of them forward.

    Args:
      found: What was read.
      network: "generator" or "discriminator"; None: the discriminator, if there are
        two.

    Raises:
      ValueError: A network is asked for, but there is one alone, or none of that name.
    """
    if getattr(found.config, "bi_data", False):
        # Trained on rows half of which ran backward; proteins are all read forward.
        config = dataclasses.replace(found.config, bi_data=False)
        found = dataclasses.replace(found, config=config)
    if not isinstance(found.config, electra.ElectraConfig):
        if network is not None:
            raise ValueError(
                f"{found.source} is one network ({type(found.config).__name__}); only "
                f"an ELECTRA in training has a {network} to choose."
            )
        return found
    generator, discriminator = electra.split_params(found.params)
    networks = {
        "generator": (found.config.generator, generator),
        "discriminator": (found.config.discriminator, discriminator),
    }
    if (network or "discriminator") not in networks:
        raise ValueError(f"network={network!r}: choose generator or discriminator.")
    config, params = networks[network or "discriminator"]
    return dataclasses.replace(found, config=config, params=params)


def _kind_of(path: pathlib.Path) -> str:
    if not path.exists():
        prefix = path.with_name(f"{path.name}.index")
        return "mtf" if prefix.exists() else "hf"
    if path.is_file():
        return "t5x"
    if any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        return "hf"
    if any(path.glob("model.ckpt-*.index")):
        return "mtf"
    try:
        checkpointing.locate(path)
        return "run"
    except checkpointing.CheckpointError:
        pass
    try:
        t5x.find(path)
        return "t5x"
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} holds no checkpoint: neither config.json (Hugging Face), nor "
            "model.ckpt-STEP.index (Mesh-TensorFlow), nor checkpoint, state or "
            "checkpoint_STEP (T5X), nor checkpoints/STEP (a run of this library)."
        ) from None


def load_params(
    source: str | os.PathLike,
    abstract_params: PyTree,
    model_config: Any = None,
) -> PyTree:
    """Parameters that a training run starts from, each on its devices.

    Of another library's checkpoint every process reads what its devices hold. Heads
    that the model lacks are left out, and named in the log.

    Args:
      source: Where; see the head of this file.
      abstract_params: Tree of `jax.ShapeDtypeStruct` with the shardings wanted.
      model_config: Configuration of the model, to compare with that of the checkpoint.

    Raises:
      checkpoints.CheckpointError: It is not there, or not whole.
      stored_arrays.MismatchError: Parameters or settings differ; lists both sides.
    """
    try:
        return _load_params(source, abstract_params, model_config)
    except FileNotFoundError as error:
        raise checkpointing.CheckpointError(str(error)) from error


def _load_params(source, abstract_params: PyTree, model_config: Any) -> PyTree:
    kind, place = split(source)
    path = pathlib.Path(place)
    if not kind and path.exists():
        kind = _kind_of(path)
    if kind in ("", "run"):
        return checkpointing.load_params(place, abstract_params)
    if isinstance(model_config, electra.ElectraConfig):
        flat = _read_both_parts(kind, place, model_config)
    else:
        found = read(source)
        _check_settings(source, found, model_config)
        flat = traverse_util.flatten_dict(_family_ids(found), sep="/")
    wanted = stored_arrays.by_name(abstract_params)
    stored = _stacked_shapes(flat, wanted)
    needed = {name: leaf for name, leaf in stored.items() if name in wanted}
    if difference := stored_arrays.compare(wanted, needed):
        raise stored_arrays.MismatchError(
            f"{source} does not fit {difference.summary(stored_arrays.REMEDY)}"
        )
    if extra := sorted(stored.keys() - wanted.keys()):
        logging.warning("%s: left out, not in the model: %s", source, ", ".join(extra))
    leaves = [_place(flat, name, leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_params), leaves)


def _read_both_parts(kind: str, place: str, config: Any) -> dict[str, np.ndarray]:
    places = place.split(",")
    if len(places) != 2:
        raise ValueError(
            f"{kind}:{place} is one checkpoint, but the model is an ELECTRA with both "
            f'parts. Name both: "{kind}:GENERATOR,DISCRIMINATOR".'
        )
    parts = []
    for where, wanted in zip(
        places, (config.generator, config.discriminator), strict=True
    ):
        found = read(f"{kind}:{where}")
        _check_settings(where, found, wanted)
        parts.append(_family_ids(found))
    return traverse_util.flatten_dict(electra.join_params(*parts), sep="/")


def _family_ids(found: families.Checkpoint) -> PyTree:
    """Parameters for the ids that a run of ours has, whatever ids they came with."""
    if found.unknown_ids:
        logging.warning(
            "%s Until then its rows are taken for %s's ids.",
            found.unknown_ids,
            found.family.vocabulary.name,
        )
    elif found.own_vocabulary is not None:
        usual = found.family.vocabulary
        vocabularies.warn_of_unused(found.vocabulary, usual, found.source)
    return vocabularies.renumber(
        found.params, found.vocabulary, found.family.vocabulary
    )


def _check_settings(source, found: families.Checkpoint, wanted: Any) -> None:
    """Refuses what has the right shapes but would compute something else."""
    if wanted is None:
        return
    if type(wanted) is not type(found.config):
        raise stored_arrays.MismatchError(
            f"{source} is a checkpoint for {type(found.config).__name__}, the model "
            f"has a {type(wanted).__name__}."
        )
    if getattr(found.config, "frequencies", None) != getattr(
        wanted, "frequencies", None
    ):
        logging.warning(
            "%s: its position frequencies are rounded; the run goes on with its own.",
            source,
        )
    # T5X and Mesh-TensorFlow have no settings but those of `side_notes`.
    free = _FREE if found.attributes else _FREE | _GUESSED
    lines = [
        f"  {field.name}: {theirs!r} -> {ours!r}"
        for field in dataclasses.fields(wanted)
        if field.name not in free
        and (theirs := getattr(found.config, field.name))
        != (ours := getattr(wanted, field.name))
    ]
    if lines:
        raise stored_arrays.MismatchError(
            f"{source} is of a model with other settings (there -> here):\n"
            + "\n".join(lines)
        )


def _layer_name(name: str, layer: int) -> str:
    parts = name.split("/")
    parts[parts.index(_LAYERS)] = f"{_LAYERS}_{layer}"
    return "/".join(parts)


def _depth(flat: Mapping[str, Any], name: str) -> int:
    layer = 0
    while _layer_name(name, layer) in flat:
        layer += 1
    return layer


def _stacked_shapes(
    flat: Mapping[str, np.ndarray], wanted: Mapping[str, Any]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Names and shapes with layers stacked, if those wanted are."""
    stack = any(_LAYERS in name.split("/") for name in wanted)
    shapes = {}
    for name, array in flat.items():
        stacked = re.sub(rf"(^|/){_LAYERS}_\d+/", rf"\1{_LAYERS}/", name)
        shape = tuple(array.shape)
        if stack and stacked != name:
            name, shape = stacked, (_depth(flat, stacked), *shape)
        shapes[name] = jax.ShapeDtypeStruct(shape, array.dtype)
    return shapes


def _place(flat: Mapping[str, np.ndarray], name: str, leaf: Any) -> jax.Array:
    """One parameter on its devices, each of which gets its piece of the file only."""
    if name in flat:
        arrays, stacked = [flat[name]], False
    else:
        layers = range(_depth(flat, name))
        arrays, stacked = [flat[_layer_name(name, i)] for i in layers], True

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        if not stacked:
            return np.asarray(arrays[0][index]).astype(leaf.dtype, order="C")
        chosen = arrays[index[0]]
        parts = [np.asarray(x[index[1:]]).astype(leaf.dtype) for x in chosen]
        return np.stack(parts)

    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    placed = jax.make_array_from_callback(leaf.shape, sharding, piece)
    for array in arrays:
        memory_map.release(array)
    return placed


def _read_run(
    path: str | os.PathLike, overrides: Mapping[str, Any]
) -> families.Checkpoint:
    """The model of an own run, from the settings in its metadata."""
    flat, metadata, source = checkpointing.read_params(path)
    config = config_of_run(metadata, **overrides)
    if isinstance(config, electra.ElectraConfig):
        family = families.FAMILIES["electra"]
    else:
        family = families.family_of_config(config)
    stored = families.widest_dtype(flat.values())
    config = dataclasses.replace(
        config,
        scan_layers=overrides.get("scan_layers", False),
        param_dtype=overrides.get("param_dtype", stored),
    )
    params = layer_stacks.convert(
        traverse_util.unflatten_dict(flat, sep="/"),
        dtype=config.param_dtype,
        stack=config.scan_layers,
    )
    return families.Checkpoint(
        family=family,
        config=config,
        params=params,
        stored_dtype=stored,
        source=pathlib.Path(source),
        form=f"prottrans_jax, step {pathlib.Path(source).name}",
    )


def config_of_run(metadata: Mapping[str, Any], **overrides: Any) -> Any:
    """Configuration of the model that a checkpoint of ours was trained with.

    Args:
      metadata: Saved with the checkpoint; see `run_identity`.
      **overrides: Fields to replace.

    Raises:
      ValueError: The metadata tells of no model.
    """
    identity = metadata.get("identity", {})
    classes = {family.config_name: family for family in families.FAMILIES.values()}
    for name, value in identity.items():
        if value == "ElectraConfig":
            config_class: Any = electra.ElectraConfig
        elif value in classes:
            config_class = classes[value].config_class
        else:
            continue
        fields = {
            field.name: _parse(identity[f"{name}.{field.name}"])
            for field in dataclasses.fields(config_class)
            if f"{name}.{field.name}" in identity
        }
        families.check_fields(config_class, overrides)
        return config_class(**{**fields, **overrides})
    raise ValueError(
        "The checkpoint's metadata names no model's configuration. Was it written by "
        "prottrans_jax.train?"
    )


def _parse(text: str) -> Any:
    """A value from what `run_identity` prints of it."""
    if match := re.fullmatch(r"dtype\('?(\w+)'?\)", text):
        return match[1]
    return ast.literal_eval(text)


def save(directory: str | os.PathLike, checkpoint: families.Checkpoint) -> pathlib.Path:
    """Writes a model in the form of an own run, to start others from.

    A run has the ids of `proteins.vocabulary`: of a checkpoint with others, the rows of
    the embedding table are put in that order.

    Args:
      directory: The new model_dir; the parameters become its step 0.
      checkpoint: The model, numpy; nobody may change it any more.

    Returns:
      The directory of the step.
    """
    target = pathlib.Path(directory) / "checkpoints"
    metadata = {
        "identity": run_identity.identity(model=checkpoint.config),
        "converted_from": checkpoint.form,
    }
    with checkpointing.Checkpointer(target) as saver:
        params = jax.tree.map(lambda x: x.view(_Final), _family_ids(checkpoint))
        saver.save(0, {"params": params}, metadata)
    return target / "0"


class _Final(np.ndarray):
    """An array that nobody changes any more: a copy of it is itself.

    Orbax copies arrays on the host before it writes them in the background, which would
    double the memory of a conversion.
    """

    def __deepcopy__(self, memo: Any) -> "_Final":
        return self
