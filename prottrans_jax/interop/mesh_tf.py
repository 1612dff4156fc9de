"""Mesh-TensorFlow's checkpoints of T5, with which ProtT5 was trained.

A folder holds `model.ckpt-STEP.index` and `.data-*`, TensorFlow's format for named
tensors. TensorFlow 2 reads and writes it without a graph; TensorFlow 1 is not needed.

Kernels are stored as here, not transposed. The relative bias of a stack is in its first
layer. Norms are called layer_norm or rms_norm, depending on the version of the code.
Optimizer slots are neither read nor written: Mesh-TensorFlow can initialise a new run
from a written checkpoint (`init_checkpoint`), but cannot resume from it.
"""

from collections.abc import Iterator, Mapping
import contextlib
import os
import pathlib
import re
from typing import Any

from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from prottrans_jax import types
from prottrans_jax.files import casting, paths
from prottrans_jax.interop import families, layer_stacks, rules, side_notes, t5_names
from prottrans_jax.models import t5
from prottrans_jax.proteins import vocabulary

_SLOT = re.compile(r".*_slot_(v|vr|vc|m)$")
_STEP = "global_step"
_CHECKPOINT = re.compile(r"(model\.ckpt-(\d+))\.index")
# The file `checkpoint`, which names the newest one of its folder.
_NEWEST = 'model_checkpoint_path: "{0}"\nall_model_checkpoint_paths: "{0}"\n'
# Bytes of parameters that TensorFlow writes at once.
_BLOCK_BYTES = 1 << 28

_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
# Names there, here, and of our norm before it; by the layer's index in a block.
_BLOCKS = {
    "encoder": (
        ("SelfAttention", "attention", "pre_attention_layer_norm"),
        ("DenseReluDense", "mlp", "pre_mlp_layer_norm"),
    ),
    "decoder": (
        ("SelfAttention", "self_attention", "pre_self_attention_layer_norm"),
        (
            "EncDecAttention",
            "encoder_decoder_attention",
            "pre_cross_attention_layer_norm",
        ),
        ("DenseReluDense", "mlp", "pre_mlp_layer_norm"),
    ),
}


def read(source: str | os.PathLike, **overrides: Any) -> families.Checkpoint:
    """Reads the model of a checkpoint.

    Sizes follow from the shapes. Other settings come from `overrides`, else from the
    `side_notes` that `write` adds, else they are T5's defaults.

    Args:
      source: A folder, whose newest step is read, or FOLDER/model.ckpt-STEP.
      **overrides: Fields of `T5Config` or of `ComputeConfig`.

    Raises:
      FileNotFoundError: There is no checkpoint.
      ValueError: It is damaged, or not a T5's.
    """
    sizes, computing = families.split_overrides(t5.T5Config, overrides)
    path = find(source)
    _check_complete(path)
    with _naming_damage(path):
        reader = _tensorflow().train.load_checkpoint(str(path))
        shapes = reader.get_variable_to_shape_map()
    names = [n for n in shapes if not _SLOT.fullmatch(n) and n != _STEP]
    dtypes = reader.get_variable_to_dtype_map()
    stored = np.dtype(jnp.result_type(*{dtypes[n].as_numpy_dtype for n in names}))
    notes = side_notes.read(_notes_of(path), overrides)
    try:
        table = {rule.foreign: rule for rule in _table(names)}
        unknown = sorted(set(names) - set(table))
        if unknown:
            raise ValueError(
                f"{len(unknown)} variables are not those of a T5: "
                f"{', '.join(unknown[:5])}{' ...' * (len(unknown) > 5)}."
            )
        with _naming_damage(path):
            flat = {
                table[name].native: table[name].take(reader.get_tensor(name))
                for name in sorted(names)
            }
        flat = t5_names.share_equal_biases(flat)
        config = t5_names.config_of(flat, **{**notes.settings, **sizes})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    compute = families.as_stored(stored, computing)
    slots = "with" if any(map(_SLOT.fullmatch, shapes)) else "without"
    return families.Checkpoint(
        family=families.FAMILIES["t5"],
        config=config,
        compute=compute,
        params=layer_stacks.convert(
            traverse_util.unflatten_dict(flat, sep="/"),
            dtype=compute.param_dtype,
            stacked=compute.scan_layers,
        ),
        stored_dtype=stored,
        source=path,
        form=f"Mesh-TensorFlow ({path.name}, {slots} slots of the optimizer)",
        attributes=notes._asdict() if notes.settings else {},
    )


def _notes_of(prefix: pathlib.Path) -> pathlib.Path:
    return prefix.with_name(f"{prefix.name}.{side_notes.NAME}")


def _check_complete(path: pathlib.Path) -> None:
    """Refuses a checkpoint without one of its PREFIX.data-0000I-of-0000N."""
    present = sorted(p.name for p in path.parent.glob(f"{path.name}.data-*-of-*"))
    number = int(present[0].rpartition("-")[2]) if present else 1
    if len(present) < number or not present:
        raise FileNotFoundError(
            f"{path}: {len(present)} of its data files (.data-00000-of-{number:05d} "
            "...) are present and others are missing. Is the download complete?"
        )


def find(source: str | os.PathLike) -> pathlib.Path:
    """Prefix of a checkpoint's files: itself, or the newest in a folder."""
    path = paths.local(source, "checkpoint")
    if path.with_name(f"{path.name}.index").is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder, and no {path.name}.index.")
    steps = [
        (int(match[2]), match[1])
        for child in path.iterdir()
        if (match := _CHECKPOINT.fullmatch(child.name))
    ]
    if not steps:
        raise FileNotFoundError(
            f"{path} has no model.ckpt-STEP.index: not a TensorFlow checkpoint."
        )
    return path / max(steps)[1]


def write(
    folder: str | os.PathLike,
    config: t5.T5Config,
    params: types.Params,
    *,
    dtype: np.typing.DTypeLike | None = None,
    step: int = 0,
    ids: vocabulary.Vocabulary | None = None,
    block_bytes: int = _BLOCK_BYTES,
) -> pathlib.Path:
    """Writes `folder/model.ckpt-STEP`: the parameters and the step, no slots.

    Args:
      folder: Output folder, like Mesh-TensorFlow's model_dir.
      config: Configuration of the model.
      params: Its parameters.
      dtype: Type of the parameters in the file; None: unchanged.
      step: Number of the step.
      ids: Vocabulary for `side_notes`; None: unknown.
      block_bytes: Arrays that TensorFlow holds in memory at once.

    Returns:
      Prefix of the files.

    Raises:
      FileExistsError: The folder already holds a checkpoint.
      ValueError: Each layer has its own relative bias.
    """
    target = pathlib.Path(folder) / f"model.ckpt-{step}"
    newest = target.parent / "checkpoint"
    index = target.with_name(f"{target.name}.index")
    for path, is_ours in ((index, False), (newest, _is_written_here(newest))):
        if os.path.lexists(path) and not is_ours:
            raise FileExistsError(f"{path} exists. Choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    tf = _tensorflow()
    flat = traverse_util.flatten_dict(layer_stacks.unstack(params), sep="/")
    arrays = rules.to_theirs(flat, _table(_names(config)))
    parts: list[str] = []
    for block in _blocks({**arrays, _STEP: np.asarray(step, np.int64)}, block_bytes):
        values = [casting.cast(name, x, dtype) for name, x in block.items()]
        parts.append(f"{target}.part-{len(parts)}")
        tf.raw_ops.SaveV2(
            prefix=parts[-1],
            tensor_names=list(block),
            shape_and_slices=[""] * len(block),
            tensors=[tf.constant(np.asarray(x, order="C")) for x in values],
        )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts, destination_prefix=str(target)
    )
    side_notes.write(_notes_of(target), config, ids)
    newest.write_text(_NEWEST.format(target.name))
    return target


def _is_written_here(newest: pathlib.Path) -> bool:
    """Whether `write` made the file that names the newest checkpoint."""
    try:
        text = newest.read_text()
    except (OSError, UnicodeDecodeError):
        return False
    name = text.partition('"')[2].partition('"')[0]
    return text == _NEWEST.format(name)


def _blocks(
    arrays: Mapping[str, np.ndarray], block_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    block: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        block[name] = array
        if sum(x.nbytes for x in block.values()) >= block_bytes:
            yield block
            block = {}
    if block:
        yield block


def _names(config: t5.T5Config) -> list[str]:
    """Names of the model's arrays in a checkpoint, as in ProtT5's."""
    if not config.share_relative_bias:
        raise ValueError(
            "share_relative_bias=False: in Mesh-TensorFlow's T5 the layers of a stack "
            "share one."
        )
    mlp = ("wi", "wo") if len(config.mlp_activations) == 1 else ("wi_0", "wi_1", "wo")
    names = ["shared/embedding"]
    if config.num_decoder_layers and not config.tie_embeddings:
        names.append("decoder/logits/kernel")
    depth = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
    for side, blocks in _BLOCKS.items():
        for block in range(depth[side]):
            for layer, (foreign, _, _) in enumerate(blocks):
                prefix = f"{side}/block_{block:03}/layer_{layer:03}"
                names.append(f"{prefix}/layer_norm/scale")
                if foreign == "DenseReluDense":
                    names += [f"{prefix}/{foreign}/{name}/kernel" for name in mlp]
                else:
                    names += [f"{prefix}/{foreign}/{name}" for name in _ATTENTION]
        if depth[side]:
            attention = f"{side}/block_000/layer_000/SelfAttention"
            names.append(f"{attention}/relative_attention_bias")
            names.append(f"{side}/final_layer_norm/scale")
    return names


def _table(names: list[str]) -> list[rules.Rule]:
    """Rules for these names; unknown names get none.

    If only the first layer of a stack has a relative bias, its rule is for the stack.
    """
    bias = "SelfAttention/relative_attention_bias"
    table = []
    for name in names:
        parts = name.split("/")
        if name == "shared/embedding":
            table.append(rules.Rule(name, "token_embedder/embedding"))
        elif name == "decoder/logits/kernel":
            table.append(rules.Rule(name, "decoder/logits_dense/kernel"))
        elif parts[0] not in _BLOCKS:
            continue
        elif parts[1:] in (["final_layer_norm", "scale"], ["rms_norm", "scale"]):
            table.append(rules.Rule(name, f"{parts[0]}/{parts[0]}_norm/scale"))
        elif (
            name.endswith(bias)
            and sum(n.startswith(parts[0]) and n.endswith(bias) for n in names) == 1
        ):
            native = f"{parts[0]}/relpos_bias/rel_embedding"
            table.append(rules.Rule(name, native))
        else:
            of_layer = _layer_name(parts)
            if of_layer is not None:
                table.append(rules.Rule(name, of_layer))
    return table


def _layer_name(parts: list[str]) -> str | None:
    """Our name for SIDE/block_BBB/layer_LLL/..., None if there is no such parameter."""
    match = re.fullmatch(r"block_(\d+)/layer_(\d+)/(.*)", "/".join(parts[1:]))
    blocks = _BLOCKS[parts[0]]
    if match is None or int(match[2]) >= len(blocks):
        return None
    foreign, native, norm = blocks[int(match[2])]
    prefix = f"{parts[0]}/layers_{int(match[1])}"
    names = {f"{x}_norm/scale": f"{norm}/scale" for x in ("layer", "rms")}
    if native == "mlp":
        names |= {
            f"{foreign}/{x}/kernel": f"mlp/{x}/kernel"
            for x in ("wi", "wi_0", "wi_1", "wo")
        }
    else:
        names |= {
            f"{foreign}/{x}": f"{native}/{y}/kernel" for x, y in _ATTENTION.items()
        }
        names[f"{foreign}/relative_attention_bias"] = "relpos_bias/rel_embedding"
    return f"{prefix}/{names[match[3]]}" if match[3] in names else None


@contextlib.contextmanager
def _naming_damage(path: pathlib.Path) -> Iterator[None]:
    """Turns TensorFlow's errors into a ValueError that names the checkpoint."""
    try:
        yield
    except _tensorflow().errors.OpError as error:
        reason = " ".join(str(error.message).split())
        raise ValueError(
            f"{path} is damaged, or not a TensorFlow checkpoint: {reason}."
        ) from error


def _tensorflow() -> Any:
    try:
        import tensorflow
    except ImportError as error:
        raise ValueError(
            "Mesh-TensorFlow's checkpoints need TensorFlow, which is not installed: "
            f"pip install tensorflow ({error})."
        ) from error
    return tensorflow
