"""Checkpoints in Hugging Face's layout: a folder, or a repository of its hub.

A folder holds `config.json` and the weights, as one file or as shards with an index:

    model.safetensors            model.safetensors.index.json, model-00001-of-0000N...
    pytorch_model.bin            pytorch_model.bin.index.json, pytorch_model-00001-...

No torch or transformers is needed, and no code in a file is executed.
"""

from collections.abc import Iterator, Mapping
import json
import os
import pathlib
import re
from typing import Any

from absl import logging
import numpy as np

from prottrans_jax import setting_trees, types
from prottrans_jax.files import casting, digests, json_text, paths, writing
from prottrans_jax.interop import (
    checkpoint_ids,
    families,
    layer_stacks,
    safetensors,
    state_dicts,
    torch_files,
    vocabularies,
)

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# transformers' default is 50 GB; 5 GB files are easier to copy over bad networks.
DEFAULT_SHARD_BYTES = 5 * 10**9
_ORGANISATION = "Rostlab"
# Short names of the released models -> repositories of the Hugging Face hub.
NAMES = {
    "prot_t5": "Rostlab/prot_t5_xl_half_uniref50-enc",
    "prot_t5_xl_u50": "Rostlab/prot_t5_xl_uniref50",
    "prot_t5_xl_bfd": "Rostlab/prot_t5_xl_bfd",
    "prot_t5_xxl_u50": "Rostlab/prot_t5_xxl_uniref50",
    "prot_t5_xxl_bfd": "Rostlab/prot_t5_xxl_bfd",
    "prot_bert": "Rostlab/prot_bert",
    "prot_bert_bfd": "Rostlab/prot_bert_bfd",
    "prot_albert": "Rostlab/prot_albert",
    "prot_electra_discriminator": "Rostlab/prot_electra_discriminator_bfd",
    "prot_electra_generator": "Rostlab/prot_electra_generator_bfd",
    "prot_xlnet": "Rostlab/prot_xlnet",
}
_SHORTEST_COMMIT = 7
_HUB_TIMEOUT_S = 20.0
# Maximum number of names that are printed.
_MAX_NAMES = 8
# Files of tokenizers and text generation beside the configuration and the weights.
COMPANIONS = (
    "added_tokens.json",
    "generation_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    vocabularies.JSON,
)
# Files that peft and adapters write beside the weights of the base model.
_ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_adapter.bin",
)

Checkpoint = families.Checkpoint


def read(
    source: str | os.PathLike,
    *,
    download: bool = False,
    revision: str | None = None,
    sha256: str | None = None,
    vocabulary: str | os.PathLike | None = None,
    **overrides: Any,
) -> Checkpoint:
    """Reads a checkpoint.

    By default parameters keep the stored type, and layers are not stacked
    (`scan_layers=False`): they are views that take no memory until they are read. With
    another `param_dtype` or `scan_layers=True` they are cast and stacked one at a time.

    Args:
      source: A folder, a repository such as "Rostlab/prot_bert", or a released short
        name such as "prot_t5_xl_uniref50".
      download: Whether a repository that is not in the local cache may be fetched.
      revision: See `find`.
      sha256: See `check_sha256`; None: the weights are not compared.
      vocabulary: Used instead of the folder's vocabulary; see `vocabularies.load`.
      **overrides: Fields of the family's configuration or of `ComputeConfig`.

    Raises:
      FileNotFoundError: There is no such folder, and it is not in the cache.
      ValueError: Configuration and parameters do not match; the folder's vocabulary
        is not one of single residues; or there are adapters beside the weights.
    """
    folder = find(source, download=download, revision=revision)
    if sha256 is not None:
        check_sha256(folder, sha256)
    _refuse_adapters(folder)
    attributes = read_attributes(folder)
    family = families.family_of(attributes)
    sizes, computing = families.split_overrides(family.config_class, overrides)
    arrays = read_arrays(folder)
    stored = families.widest_dtype(arrays.values())
    try:
        arrays, left_out = state_dicts.of_model(arrays, family.name)
        config = family.table.config_from_hf(attributes, **sizes)
        config = _fit_config(family, config, arrays)
        params = family.table.params_from_hf(arrays, config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: a value is not a number or out of range "
            f"({error})."
        ) from error
    compute = families.as_stored(stored, computing)
    params = layer_stacks.convert(
        params, dtype=compute.param_dtype, stacked=compute.scan_layers
    )
    if left_out:
        logging.warning(
            "%s: arrays of a task head or another module are left out: %s%s (%d).",
            folder,
            ", ".join(left_out[:_MAX_NAMES]),
            ", ..." * (len(left_out) > _MAX_NAMES),
            len(left_out),
        )
    checkpoint = Checkpoint(
        family=family,
        config=config,
        compute=compute,
        params=params,
        stored_dtype=stored,
        source=folder,
        form=f"Hugging Face ({describe(folder)})",
        attributes=attributes,
        left_out=tuple(left_out),
    )
    if vocabulary is not None:
        return checkpoint_ids.named(checkpoint, vocabulary)
    return checkpoint_ids.of_folder(checkpoint)


def _refuse_adapters(folder: pathlib.Path) -> None:
    names = [name for name in _ADAPTER_FILES if (folder / name).exists()]
    if names:
        raise ValueError(
            f"{folder} holds an adapter ({', '.join(names)}), which changes the "
            "model's output and is not supported. Merge it in peft with "
            "model.merge_and_unload() and save the result; or remove the adapter's "
            "files to use the base model alone."
        )


def _fit_config(
    family: families.Family, config: types.ModelConfig, arrays: Mapping[str, np.ndarray]
) -> Any:
    """The configuration without parts that the checkpoint lacks.

    `architectures` names the class that wrote the file, not its contents, so a family's
    table may decide by the arrays.
    """
    fit = getattr(family.table, "fit_config", None)
    return fit(config, arrays) if fit else config


def read_attributes(folder: pathlib.Path) -> dict[str, Any]:
    """Reads a folder's `config.json`."""
    path = folder / "config.json"
    try:
        return json_text.read_object(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} has no config.json: not a Hugging Face checkpoint."
        ) from None


def read_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a folder under Hugging Face's names, as views of mapped files."""
    for name in _WEIGHT_FILES:
        load = safetensors.load if name.endswith(".safetensors") else torch_files.load
        if (folder / name).exists():
            return _modern_names(load(folder / name))
        index = folder / f"{name}.index.json"
        if index.exists():
            return _modern_names(_read_shards(index, load))
    present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise FileNotFoundError(
        f"{folder} has no weights: neither {' nor '.join(_WEIGHT_FILES)}, whole or in "
        f"shards. It has {present}."
    )


def check_sha256(folder: pathlib.Path, expected: str) -> None:
    """Compares the weights with digests that the user has from elsewhere.

    Args:
      folder: Holds the weights.
      expected: SHA-256 of the file of weights, in hexadecimal; of several files, their
        digests in the order of their names, with commas between them.

    Raises:
      ValueError: A digest differs, or is not one.
    """
    files = _weight_files(folder)
    digests_expected = [digest.strip().lower() for digest in expected.split(",")]
    if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests_expected):
        raise ValueError(
            f"sha256={expected}: a SHA-256 has 64 hexadecimal digits. `sha256sum FILE` "
            "prints it, and the repository's page shows it."
        )
    if len(digests_expected) != len(files):
        names = ", ".join(path.name for path in files) or "no weights"
        raise ValueError(
            f"sha256 has {len(digests_expected)} digests, {folder} has {len(files)} "
            f"files: {names}. Give one for each, in this order, separated by commas."
        )
    for path, digest in zip(files, digests_expected, strict=True):
        if (actual := digests.of_file(path)) != digest:
            raise ValueError(
                f"{path} has the SHA-256 {actual}, not {digest}: these are other "
                "weights, or the file is damaged. Nothing was loaded from it."
            )


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that `read_arrays` reads, by name."""
    for name in _WEIGHT_FILES:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            names = sorted(set(_read_index(index).values()))
            return [folder / name for name in names]
    return []


def describe(folder: pathlib.Path) -> str:
    """Format of a folder's weights, e.g. "model.safetensors in 3 shards"."""
    for name in _WEIGHT_FILES:
        if (folder / name).exists():
            return name
        index = folder / f"{name}.index.json"
        if index.exists():
            files = _read_index(index)
            return f"{name} in {len(set(files.values()))} shards"
    return "no weights"


def _read_index(index: pathlib.Path) -> dict[str, str]:
    """File name of each array."""
    try:
        files = json_text.read_object(index)["weight_map"]
        outside = [name for name in files.values() if pathlib.Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{index}: not {{"weight_map": {{ARRAY: FILE}}}} in JSON ({error!r}).'
        ) from error
    if outside:
        raise ValueError(f"{index}: {outside[0]} is not a file of this folder.")
    return files


def _read_shards(index: pathlib.Path, load) -> dict[str, np.ndarray]:
    files = _read_index(index)
    names = sorted(set(files.values()))
    missing_files = [name for name in names if not (index.parent / name).exists()]
    if missing_files:
        raise FileNotFoundError(
            f"{index} lists {len(names)} files, of which are missing: "
            f"{', '.join(missing_files)}. Is the download complete?"
        )
    shards = {name: load(index.parent / name) for name in names}
    absent = [array for array, name in files.items() if array not in shards[name]]
    if absent:
        raise ValueError(
            f"{index}: {absent[0]} is not in {files[absent[0]]}; {len(absent)} arrays "
            "are missing in all."
        )
    return {array: shards[name][array] for array, name in files.items()}


def _modern_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames LayerNorm parameters of checkpoints converted from TensorFlow."""
    renamed = {}
    for name, array in arrays.items():
        for old, new in (("LayerNorm.gamma", "weight"), ("LayerNorm.beta", "bias")):
            if name.endswith(old):
                name = f"{name.removesuffix(old)}LayerNorm.{new}"
        renamed[name] = array
    return renamed


def write(
    folder: str | os.PathLike,
    config: types.ModelConfig,
    params: types.Params,
    *,
    dtype: np.typing.DTypeLike | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[pathlib.Path]:
    """Writes a folder that transformers' `from_pretrained` loads.

    Needs memory for one array besides `params`.

    Args:
      folder: Created if absent; must not hold weights or a config.json.
      config: Configuration of the model.
      params: Its parameters.
      dtype: Floating-point type in the files; None keeps that of the parameters.
      max_shard_bytes: Maximum file size, unless a single array is larger.

    Returns:
      The weight files.

    Raises:
      FileExistsError: The folder holds such files already.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weight_files = [*_WEIGHT_FILES, *(f"{name}.index.json" for name in _WEIGHT_FILES)]
    for name in (*weight_files, "config.json"):
        if os.path.lexists(folder / name):
            raise FileExistsError(f"{folder / name} exists. Choose another folder.")
    family = families.family_of_config(config)
    arrays = dict(sorted(family.table.params_to_hf(params, config).items()))
    stored = families.widest_dtype(arrays.values()) if dtype is None else dtype
    attributes = family.table.config_to_hf(config)
    attributes["dtype"] = attributes["torch_dtype"] = np.dtype(stored).name
    shards = list(_shards(arrays, dtype, max_shard_bytes))
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [
            f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            for number in range(1, len(shards) + 1)
        ]
    for name, shard in zip(names, shards, strict=True):
        safetensors.save(folder / name, shard, dtype)
    if len(shards) > 1:
        total = sum(_num_bytes(array, dtype) for array in arrays.values())
        index: dict[str, Any] = {
            "metadata": {"total_size": total},
            "weight_map": {
                array: name
                for name, shard in zip(names, shards, strict=True)
                for array in shard
            },
        }
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", attributes)
    return [folder / name for name in names]


def _shards(
    arrays: Mapping[str, np.ndarray], dtype: np.typing.DTypeLike | None, max_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, array in arrays.items():
        num_bytes = _num_bytes(array, dtype)
        if shard and size + num_bytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += num_bytes
    yield shard


def _num_bytes(array: np.ndarray, dtype: np.typing.DTypeLike | None) -> int:
    return array.size * casting.stored_dtype(array, dtype).itemsize


def _write_json(path: pathlib.Path, content: setting_trees.Tree) -> None:
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")


def find(
    source: str | os.PathLike, *, download: bool = False, revision: str | None = None
) -> pathlib.Path:
    """Folder of a checkpoint: `source` itself, or a repository's in the hub's cache.

    Args:
      source: A folder, a name in `NAMES`, "owner/name", or a name of the ProtTrans
        authors' repositories.
      download: Whether to fetch the repository if it is not in the cache.
      revision: Branch, tag or commit of the repository, also the first 7 or more digits
        of a commit; None: "main", or any revision in the cache.

    Raises:
      FileNotFoundError: There is no such folder or repository; lists the places
        searched and what to do.
      ValueError: `revision` is set for a folder.
    """
    folder = paths.local(source, "checkpoint")
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"{source} is a folder; only a repository of the hub has revisions "
                f"such as {revision!r}."
            )
        return folder
    repository = NAMES.get(str(source), str(source))
    if "/" not in repository:
        repository = f"{_ORGANISATION}/{repository}"
    looks_like_path = (
        repository.startswith(("/", ".", "~")) or repository.count("/") > 1
    )
    if looks_like_path:
        raise FileNotFoundError(f"{source}: no such folder.")
    cached = _cached(repository, revision)
    if cached is not None:
        return cached
    if not download:
        which, flag = repository, ""
        if revision is not None:
            which = f"revision {revision!r} of {repository}"
            flag = f" --revision {revision}"
        raise FileNotFoundError(
            f"{source}: no such folder, and {which} is not in {cache_dir()}. To fetch "
            f"it run `hf download {repository}{flag}`, or pass download=True "
            "(--download on the command line)."
        )
    folder = _download(repository, revision)
    if revision is None:
        logging.warning(
            "%s: fetched what its branch main is today, commit %s. Pass --revision %s "
            "(revision= in Python) to get the same again.",
            *(repository, folder.name, folder.name),
        )
    return folder


def cache_dir() -> pathlib.Path:
    """Cache folder of Hugging Face's libraries."""
    cache = paths.of_environment("HF_HUB_CACHE")
    if cache is not None:
        return cache
    home = paths.of_environment("HF_HOME") or paths.cache_home() / "huggingface"
    return home / "hub"


def _cached(repository: str, revision: str | None) -> pathlib.Path | None:
    """A cached snapshot of a repository with a configuration and weights, or None."""
    root = cache_dir() / f"models--{repository.replace('/', '--')}"
    ref = root / "refs" / (revision or "main")
    names = [ref.read_text().strip()] if ref.is_file() else []
    snapshots = root / "snapshots"
    if snapshots.is_dir():
        commits = sorted(path.name for path in snapshots.iterdir())
        if revision is not None:
            short = len(revision) >= _SHORTEST_COMMIT
            commits = [
                name
                for name in commits
                if name == revision or (short and name.startswith(revision))
            ]
        names += commits
    for name in names:
        folder = snapshots / name
        weights = [folder / name for name in _WEIGHT_FILES]
        weights += [folder / f"{name}.index.json" for name in _WEIGHT_FILES]
        if (folder / "config.json").exists() and any(map(pathlib.Path.exists, weights)):
            return folder
    return None


def _download(repository: str, revision: str | None) -> pathlib.Path:
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(
            f"{repository} must be fetched, which needs huggingface_hub: "
            "pip install 'prottrans_jax[hub]'. Or put the repository's files into a "
            "folder and pass its path."
        ) from None
    try:
        # One request: other ways to list files retry for half a minute when off-line.
        about = huggingface_hub.model_info(
            repository, revision=revision, timeout=_HUB_TIMEOUT_S
        )
        files = [file.rfilename for file in about.siblings or ()]
        suffix = ".safetensors"
        if not any(name.endswith(suffix) for name in files):
            suffix = ".bin"
        # Exact names, as repositories may also hold older weights.
        stem = "model" if suffix == ".safetensors" else "pytorch_model"
        patterns = ["config.json", f"{stem}{suffix}", f"{stem}{suffix}.index.json"]
        patterns.append(f"{stem}-*-of-*{suffix}")
        # Adapters too, so that they are refused rather than ignored.
        patterns += [*vocabularies.FILES, *vocabularies.BESIDE, *_ADAPTER_FILES]
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=patterns
            )
        )
    except Exception as error:  # The class depends on the version of the hub library.
        if isinstance(error, OSError) and writing.no_room(error) is not None:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{repository} could not be fetched: {reason}. Check the name and the "
            "network, or put its files into a folder and pass its path."
        ) from error
