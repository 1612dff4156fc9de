"""Opens parameters of our runs and of checkpoints of other libraries.

The same syntax works in `load_encoder`, `run_settings.Start.init_from`, gin's
INITIAL_CHECKPOINT_PATH and `python -m prottrans_jax.convert --input`:

    hf:FOLDER or hf:OWNER/NAME   Hugging Face; short names as hf:prot_bert
    t5x:FOLDER                   T5X, any generation
    mtf:FOLDER                   Mesh-TensorFlow's T5
    FOLDER                       a run of ours: model_dir, its checkpoints, or one step

A folder may be in a bucket; see `on_this_machine`.

To train both networks of an ELECTRA, give two: "hf:GENERATOR,DISCRIMINATOR".
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import os
from typing import Any

from absl import logging
from flax import linen as nn
from flax import traverse_util
import jax
from jaxtyping import PyTree
import numpy as np

from prottrans_jax import differences, setting_trees, types
from prottrans_jax.checkpoints import (
    checkpointing,
    earlier_identity,
    manifests,
    run_identity,
    stored_arrays,
    stored_steps,
)
from prottrans_jax.files import buckets, folders, memory_map, paths
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

# Fields not compared when loading initial parameters: they concern training or row
# lengths, or checkpoints do not store them.
_FREE = frozenset(
    """
    attention_dropout_rate bi_data dropout_rate frequencies initializer_range lm_head
    max_length mem_length order_head pooler replaced_head reuse_length
    """.split()
)
# Not visible in the shapes: guessed for a checkpoint without a configuration.
_GUESSED = frozenset({"mlp_activations", "norm_epsilon", "relative_max_distance"})


def read(
    source: str | os.PathLike,
    *,
    download: bool = False,
    revision: str | None = None,
    sha256: str | None = None,
    vocabulary: str | os.PathLike | None = None,
    **overrides: Any,
) -> families.Checkpoint:
    """Reads a model from a checkpoint of any supported kind.

    The kind of a folder without a prefix is detected.

    Args:
      source: Checkpoint, in the syntax of this module's docstring.
      download: Whether a repository of the hub may be downloaded.
      revision: Branch, tag or commit of the repository; see `huggingface.find`.
      sha256: Digests of the weights; see `huggingface.check_sha256`.
      vocabulary: Tokenizer file that maps residues to ids; None: the one of the
        checkpoint. See `interop.vocabularies.load`.
      **overrides: Fields of the family's configuration or of `ComputeConfig`, such as
        `param_dtype`.

    Raises:
      FileNotFoundError: The checkpoint does not exist.
      ValueError: The checkpoint is damaged or fits none of our models.
    """
    kind, place = split(source)
    kind = kind or _kind_of(paths.place(place, "checkpoint"))
    if kind == "hf":
        return huggingface.read(
            place,
            download=download,
            revision=revision,
            sha256=sha256,
            vocabulary=vocabulary,
            **overrides,
        )
    if revision is not None or sha256 is not None:
        raise ValueError(
            f"{source} is not in Hugging Face's layout: it has no revisions, and no "
            "single file of weights for a SHA-256. Leave --revision and --sha256 out."
        )
    if kind in ("t5x", "mtf"):
        module = {"t5x": t5x, "mtf": mesh_tf}[kind]
        checkpoint = module.read(place, **overrides)
        if vocabulary is not None:
            return checkpoint_ids.named(checkpoint, vocabulary)
        return checkpoint_ids.of_notes(checkpoint)
    if vocabulary is not None:
        raise ValueError(
            f"{source} is a run of this library, whose ids are known: drop "
            f"--vocabulary {vocabulary}."
        )
    return _read_run(place, overrides)


@contextlib.contextmanager
def opened(source: str | os.PathLike, **options: Any) -> Iterator[families.Checkpoint]:
    """Yields the result of `read`, also for another library's checkpoint in a bucket.

    Such a checkpoint is copied to this machine for the time of the block. Of a run of
    this library only the arrays that are needed are read, from the bucket.

    Args:
      source: Checkpoint, in the syntax of this module's docstring.
      **options: As for `read`.

    Raises:
      OSError: A request failed, or a copy does not fit on this machine's disk.
      ValueError: As `read`.
    """
    _, text = split(source)
    with on_this_machine(source) as local:
        checkpoint = read(local, **options)
        if buckets.is_bucket(text) and not buckets.is_bucket(checkpoint.source):
            place = paths.place(text, "checkpoint")
            unknown_ids = checkpoint.unknown_ids.replace(split(local)[1], text)
            checkpoint = dataclasses.replace(
                checkpoint, source=place, unknown_ids=unknown_ids
            )
        yield checkpoint


@contextlib.contextmanager
def on_this_machine(source: str | os.PathLike) -> Iterator[str]:
    """Yields the source, with copies of another library's checkpoints in buckets.

    The copies are deleted after the block; errors of the block name the places in the
    bucket. A run of this library stays where it is.

    Args:
      source: Checkpoint, in the syntax of this module's docstring.

    Raises:
      FileNotFoundError: There is no such folder in the bucket.
      OSError: A request failed, or a copy does not fit on this machine's disk.
    """
    kind, text = split(source)
    with contextlib.ExitStack() as copies:
        local = [
            _local_place(kind, place, copies) if buckets.is_bucket(place) else place
            for place in text.split(",")
        ]
        yield (f"{kind}:" if kind else "") + ",".join(local)


def _local_place(kind: str, text: str, copies: contextlib.ExitStack) -> str:
    place = paths.place(text, "checkpoint")
    if not kind and _kind_of(place) == "run":
        return text
    if place.exists():
        return str(copies.enter_context(folders.local_copy(place)))
    if not place.with_name(f"{place.name}.index").exists():
        raise FileNotFoundError(f"{place}: no such folder.")
    # The prefix of several files, of Mesh-TensorFlow.
    return str(copies.enter_context(folders.local_copy(place.parent)) / place.name)


def split(source: str | os.PathLike) -> tuple[str, str]:
    """Kind and place of a source; the kind is "" without a prefix.

    Raises:
      paths.PathError: The source is a URL, or in the home folder of an unknown user.
    """
    text = paths.source(source, "checkpoint")
    kind, colon, place = text.partition(":")
    return (kind, place) if colon and kind in paths.SOURCE_KINDS else ("", text)


def split_known(source: str | os.PathLike) -> tuple[str, str]:
    """As `split`, with the kind of an existing folder detected; "run" for ours.

    Raises:
      FileNotFoundError: The folder exists and holds no checkpoint.
    """
    kind, place = split(source)
    if not kind and (path := paths.place(place, "checkpoint")).exists():
        kind = _kind_of(path)
    return kind, place


def model_of(checkpoint: families.Checkpoint) -> nn.Module:
    """The Linen model of a checkpoint's parameters."""
    if isinstance(checkpoint.config, electra.ElectraConfig):
        return electra.Electra(checkpoint.config, checkpoint.compute)
    return checkpoint.family.model_class(checkpoint.config, checkpoint.compute)


def encoder_of(
    checkpoint: families.Checkpoint, network: str | None = None
) -> families.Checkpoint:
    """The network that embeds proteins; one of two for an ELECTRA in training.

    An XLNet that was trained on rows in both directions reads all proteins forward.

    Args:
      checkpoint: From `read`.
      network: "generator" or "discriminator" of an ELECTRA in training; None: the
        discriminator.

    Raises:
      ValueError: `network` is unknown, or is given for a model with one network.
    """
    config = checkpoint.config
    if getattr(config, "bi_data", False):
        # In training half of the rows ran backward; proteins are all read forward.
        config = dataclasses.replace(config, bi_data=False)
        checkpoint = dataclasses.replace(checkpoint, config=config)
    if not isinstance(config, electra.ElectraConfig):
        if network is not None:
            raise ValueError(
                f"{checkpoint.source} is one network ({type(config).__name__}); only "
                f"an ELECTRA in training has a {network} to choose."
            )
        return checkpoint
    generator, discriminator = electra.split_params(checkpoint.params)
    networks = {
        "generator": (config.generator, generator),
        "discriminator": (config.discriminator, discriminator),
    }
    if (network or "discriminator") not in networks:
        raise ValueError(f"network={network!r}: choose generator or discriminator.")
    config, params = networks[network or "discriminator"]
    return dataclasses.replace(checkpoint, config=config, params=params)


def _kind_of(path: paths.Place) -> str:
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
        stored_steps.locate(path)
        return "run"
    except manifests.CheckpointError:
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
    model_config: types.ModelConfig | None = None,
) -> PyTree:
    """Initial parameters of a training run, each with its sharding.

    From another library's checkpoint every process reads only the shards of its
    devices; one in a bucket is first copied to every host. Heads that the model does
    not have are skipped and logged.

    Args:
      source: Checkpoint, in the syntax of this module's docstring.
      abstract_params: Tree of `jax.ShapeDtypeStruct` with the final shardings.
      model_config: Configuration of the model, compared with that of the checkpoint.

    Raises:
      manifests.CheckpointError: The checkpoint is missing or damaged.
      stored_arrays.MismatchError: Parameters or settings differ; lists both sides.
    """
    try:
        return _load_params(source, abstract_params, model_config)
    except FileNotFoundError as error:
        raise manifests.CheckpointError(str(error)) from error


def _load_params(
    source, abstract_params: PyTree, model_config: types.ModelConfig | None
) -> PyTree:
    kind, place = split_known(source)
    if kind in ("", "run"):
        return stored_steps.load_params(place, abstract_params)
    with on_this_machine(source) as local:
        if isinstance(model_config, electra.ElectraConfig):
            flat = _read_both_networks(kind, split(local)[1], model_config)
        else:
            checkpoint = read(local)
            check_settings(source, checkpoint, model_config)
            flat = traverse_util.flatten_dict(_family_ids(checkpoint), sep="/")
        return place_arrays(source, flat, abstract_params)


def place_arrays(
    source: str | os.PathLike, flat: Mapping[str, np.ndarray], abstract: PyTree
) -> PyTree:
    """Puts the arrays of another library's checkpoint on the devices.

    Each device gets only its shard. Arrays that are not in `abstract` are skipped and
    logged.

    Args:
      source: Name of the checkpoint, for messages.
      flat: Host arrays by our names, with layers not stacked.
      abstract: Tree of `jax.ShapeDtypeStruct` with the final shardings; its layers may
        be stacked.

    Raises:
      stored_arrays.MismatchError: Arrays are missing or have other shapes.
    """
    abstract_arrays = stored_arrays.by_name(abstract)
    stored = _stacked_shapes(flat, abstract_arrays)
    needed = {name: leaf for name, leaf in stored.items() if name in abstract_arrays}
    if difference := stored_arrays.compare(abstract_arrays, needed):
        raise stored_arrays.MismatchError(
            f"{source} does not fit {difference.summary(stored_arrays.REMEDY)}"
        )
    if extra := sorted(stored.keys() - abstract_arrays.keys()):
        logging.warning("%s: skipped, not in the model: %s", source, ", ".join(extra))
    leaves = [_place(flat, name, leaf) for name, leaf in abstract_arrays.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _read_both_networks(
    kind: str, place: str, config: electra.ElectraConfig
) -> dict[str, np.ndarray]:
    places = place.split(",")
    if len(places) != 2:
        raise ValueError(
            f"{kind}:{place} is one checkpoint, but the model is an ELECTRA with two "
            f'networks. Name both: "{kind}:GENERATOR,DISCRIMINATOR".'
        )
    networks = []
    for network_place, network_config in zip(
        places, (config.generator, config.discriminator), strict=True
    ):
        checkpoint = read(f"{kind}:{network_place}")
        check_settings(network_place, checkpoint, network_config)
        networks.append(_family_ids(checkpoint))
    return traverse_util.flatten_dict(electra.join_params(*networks), sep="/")


def _family_ids(checkpoint: families.Checkpoint) -> PyTree:
    """A checkpoint's parameters, with embedding rows in the order of our ids."""
    vocabulary = checkpoint.family.vocabulary
    if checkpoint.unknown_ids:
        logging.warning(
            "%s Until then its rows are taken for %s's ids.",
            checkpoint.unknown_ids,
            vocabulary.name,
        )
    elif checkpoint.own_vocabulary is not None:
        vocabularies.warn_of_unused(
            checkpoint.vocabulary, vocabulary, checkpoint.source
        )
    return vocabularies.renumber(checkpoint.params, checkpoint.vocabulary, vocabulary)


def check_settings(
    source: str | os.PathLike,
    checkpoint: families.Checkpoint,
    model_config: types.ModelConfig | None,
) -> None:
    """Raises if the arrays fit, but settings would change the outputs.

    Args:
      source: Name of the checkpoint, for messages.
      checkpoint: From `read`.
      model_config: Configuration of the model; None: not compared.

    Raises:
      stored_arrays.MismatchError: Settings differ; lists them.
    """
    if model_config is None:
        return
    config = checkpoint.config
    if type(model_config) is not type(config):
        raise stored_arrays.MismatchError(
            f"{source} is a checkpoint for {type(config).__name__}, the model "
            f"has a {type(model_config).__name__}."
        )
    if getattr(config, "frequencies", None) != getattr(
        model_config, "frequencies", None
    ):
        logging.warning(
            "%s: its position frequencies are rounded; the run uses those of its "
            "configuration.",
            source,
        )
    # Checkpoints of T5X and Mesh-TensorFlow have only the settings of `side_notes`.
    free = _FREE if checkpoint.attributes else _FREE | _GUESSED
    names = {field.name for field in dataclasses.fields(config)} - free
    lines = differences.lines(
        *({n: getattr(x, n) for n in names} for x in (config, model_config))
    )
    if lines:
        raise stored_arrays.MismatchError(
            f"{source} is of a model with other settings (checkpoint -> model):\n  "
            + "\n  ".join(lines)
        )


def _stacked_shapes(
    flat: Mapping[str, np.ndarray], model_names: Iterable[str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Names and shapes of arrays, with layers stacked if the model stacks them."""
    stack = any(map(layer_stacks.is_stacked, model_names))
    shapes = {}
    for name, array in flat.items():
        stacked = layer_stacks.stack_name(name)
        shape = tuple(array.shape)
        if stack and stacked != name:
            depth = len(layer_stacks.layer_names(stacked, flat))
            name, shape = stacked, (depth, *shape)
        shapes[name] = jax.ShapeDtypeStruct(shape, array.dtype)
    return shapes


def _place(
    flat: Mapping[str, np.ndarray], name: str, leaf: jax.ShapeDtypeStruct
) -> jax.Array:
    """One parameter on its devices; each device gets only its shard of the file."""
    if name in flat:
        arrays, stacked = [flat[name]], False
    else:
        arrays, stacked = [flat[x] for x in layer_stacks.layer_names(name, flat)], True

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
    """The model of one of our runs, configured by the checkpoint's metadata."""
    flat, metadata, source = stored_steps.read_params(path)
    config, dtype = config_of_run(metadata)
    sizes, computing = families.split_overrides(type(config), overrides)
    config = dataclasses.replace(config, **sizes)
    family = family_of(config)
    stored = families.widest_dtype(flat.values())
    compute = families.as_stored(stored, {"dtype": dtype, **computing})
    params = layer_stacks.convert(
        traverse_util.unflatten_dict(flat, sep="/"),
        dtype=compute.param_dtype,
        stacked=compute.scan_layers,
    )
    return families.Checkpoint(
        family=family,
        config=config,
        compute=compute,
        params=params,
        stored_dtype=stored,
        source=paths.place(source, "checkpoint"),
        form=f"prottrans_jax, step {source.name}",
    )


def family_of(config: types.ModelConfig) -> families.Family:
    """Family of a model's configuration; also of an ELECTRA in training."""
    if isinstance(config, electra.ElectraConfig):
        return families.FAMILIES["electra"]
    return families.family_of_config(config)


def config_of_run(metadata: Mapping[str, Any]) -> tuple[Any, str]:
    """Model configuration of one of our checkpoints, and the type that it computed in.

    Args:
      metadata: Saved with the checkpoint; see `run_identity`.

    Raises:
      ValueError: The metadata has no model configuration.
    """
    classes: dict[str, Any] = {
        family.config_name: family.config_class for family in families.FAMILIES.values()
    }
    classes["ElectraConfig"] = electra.ElectraConfig
    for name, settings in _objects(run_identity.of_checkpoint(metadata)):
        if name not in classes:
            continue
        config_class = classes[name]
        known = {field.name for field in dataclasses.fields(config_class)}
        fields = {
            # JSON has no tuples.
            field: tuple(value) if isinstance(value, list) else value
            for field, value in settings.items()
            if field in known
        }
        former = earlier_identity.compute_dtype(metadata["identity"])
        return config_class(**fields), metadata.get("dtype") or former or "float32"
    raise ValueError(
        "The checkpoint's metadata has no model configuration. Was it written by "
        "prottrans_jax.train?"
    )


def _objects(tree: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Class name and fields of each object in an identity, outer ones first."""
    if setting_trees.TYPE in tree:
        yield tree[setting_trees.TYPE], tree
    for value in tree.values():
        if isinstance(value, Mapping):
            yield from _objects(value)


def save(directory: str | os.PathLike, checkpoint: families.Checkpoint) -> paths.Place:
    """Writes a model as step 0 of a run, for `init_from` of other runs.

    Rows of the embedding table are reordered to the ids of `proteins.vocabulary`.

    Args:
      directory: The new model_dir; the parameters become its step 0.
      checkpoint: The model with numpy arrays, which must not be modified afterwards.

    Returns:
      The directory of the step.
    """
    target = paths.place(directory, "directory") / "checkpoints"
    metadata = {
        "identity": run_identity.identity(model=checkpoint.config),
        "dtype": np.dtype(checkpoint.compute.dtype).name,
        "converted_from": checkpoint.form,
    }
    with checkpointing.Checkpointer(target) as saver:
        params = jax.tree.map(lambda x: x.view(_Final), _family_ids(checkpoint))
        saver.save(0, {"params": params}, metadata)
    return target / "0"


class _Final(np.ndarray):
    """An array that is not modified any more; deepcopy returns self.

    Orbax copies host arrays before it writes them in the background. Without this class
    a conversion would need twice the memory.
    """

    def __deepcopy__(self, memo: object) -> "_Final":
        return self
