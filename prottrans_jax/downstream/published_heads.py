"""Published heads: torch files of others, read without torch.

  TMbed              a folder with cv_0.pt to cv_4.pt
  ProstT5            CNN of width 7 from 1024 to the 20 states of 3Di
  bio_embeddings     CNN to 3 and 8 states and disorder; pooled network to location and
                     membrane

The files name no classes: the form is recognised by the shapes, and the order of the
classes is that of the source. Nor do they name weights of the encoder, so predictions
only check the size of its vectors.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from jaxtyping import Float
import numpy as np

from prottrans_jax.downstream import (
    head_folders,
    heads,
    labelled,
    published_tasks,
    tmbed_cnn,
)
from prottrans_jax.files import paths
from prottrans_jax.interop import torch_files

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_PROST_T5 = "Rostlab/ProstT5"
_STATES_OF_3DI = tuple("ACDEFGHIKLMNPQRSTVWY")
TMBED = labelled.Task(
    "transmembrane",
    "residue",
    ("B", "H", "S", "i", "o"),
    "accuracy",
    "TMbed (Bernhofer & Rost 2022)",
)
STRUCTURE_3DI = labelled.Task(
    "structure_3di",
    "residue",
    _STATES_OF_3DI,
    "accuracy",
    "ProstT5 (Heinzinger et al. 2024), 3Di states of Foldseek",
)
_Arrays = Mapping[str, Float[np.ndarray, "..."]]


def load(path: str | os.PathLike) -> head_folders.Head:
    """A head of our own format, or a published one; see `head_folders.load`.

    Raises:
      FileNotFoundError: There is no head at the path.
      ValueError: The file holds none of the published forms.
    """
    place = paths.place(path, "--head")
    if place.is_dir() and (place / "cv_0.pt").is_file():
        return _tmbed([paths.local(file, "--head") for file in _networks(place)])
    if place.suffix.lower() in _SUFFIXES and place.is_file():
        return of_arrays(torch_files.load(paths.local(place, "--head")), str(path))
    return head_folders.load(path)


def _networks(folder: paths.Place) -> list[paths.Place]:
    return sorted(file for file in folder.iterdir() if file.name.startswith("cv_"))


def _encoder(d_model: int, source: str, prefix: str = "") -> head_folders.EncoderId:
    # The files do not say which weights they were trained on: only sizes are compared.
    return head_folders.EncoderId(source, "", d_model, prefix=prefix, source=source)


def of_arrays(arrays: _Arrays, where: str) -> head_folders.Head:
    """The head that a state dict of ProstT5 or bio_embeddings holds.

    Args:
      arrays: Tensors by name, in the order of the file.
      where: Name of the file, for errors.

    Raises:
      ValueError: The shapes are of neither.
    """
    pairs = [
        (array, arrays[name.removesuffix("weight") + "bias"])
        for name, array in arrays.items()
        if name.endswith("weight") and name.removesuffix("weight") + "bias" in arrays
    ]
    by_size = {len(weight): (weight, bias) for weight, bias in pairs[1:]}
    sizes = sorted(by_size)
    if pairs and len(pairs[0][0].shape) == 4 and sizes == [20]:
        return _head("cnn", pairs[0], by_size, (STRUCTURE_3DI,), _PROST_T5)
    names: dict[int, str] = {}
    if pairs and len(pairs[0][0].shape) == 4 and sizes == [2, 3, 8]:
        names = {3: "secondary_structure_3", 8: "secondary_structure_8", 2: "disorder"}
    elif pairs and len(pairs[0][0].shape) == 2 and sizes == [2, 10]:
        names = {10: "location", 2: "membrane"}
    if not names:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"{where}: not a published head that this version reads (ProstT5, or "
            f"bio_embeddings with or without membrane). It holds {shapes}."
        )
    tasks = tuple(published_tasks.get(name).task for name in names.values())
    kind = "cnn" if len(pairs[0][0].shape) == 4 else "fnn"
    return _head(kind, pairs[0], by_size, tasks, "prot_t5")


def _head(
    kind: str,
    hidden: tuple[np.ndarray, np.ndarray],
    outputs: Mapping[int, tuple[np.ndarray, np.ndarray]],
    tasks: tuple[labelled.Task, ...],
    model: str,
) -> head_folders.Head:
    """A head whose outputs are those of several layers side by side."""
    chosen = [outputs[task.num_outputs] for task in tasks]
    weights = np.concatenate([weight for weight, _ in chosen])
    biases = np.concatenate([bias for _, bias in chosen])
    params = {
        "hidden": {"kernel": _kernel(hidden[0]), "bias": _array(hidden[1])},
        "output": {"kernel": _kernel(weights), "bias": _array(biases)},
    }
    d_hidden, d_model = hidden[0].shape[:2]
    module: Any = heads.Fnn(len(biases), d_hidden=d_hidden)
    if kind == "cnn":
        width = hidden[0].shape[2]
        module = heads.Cnn(len(biases), d_hidden=d_hidden, width=width)
    prefix = "<AA2fold>" if model == _PROST_T5 else ""
    return head_folders.Head(module, params, tasks, _encoder(d_model, model, prefix))


def _array(array: np.ndarray) -> np.ndarray:
    return np.array(array, np.float32)


def _kernel(weight: np.ndarray) -> np.ndarray:
    """torch's [outputs, inputs] or [outputs, inputs, width, 1] in our order."""
    if weight.ndim == 4:
        weight = weight[..., 0]
    return _array(weight.T)


def _tmbed(files: list[pathlib.Path]) -> head_folders.Head:
    params = {}
    for number, file in enumerate(files):
        arrays = torch_files.load(file)

        def norm(name, arrays=arrays):
            return {
                "scale": _array(arrays[f"model.{name}.norm.weight"]).ravel(),
                "bias": _array(arrays[f"model.{name}.norm.bias"]).ravel(),
            }

        try:
            params[f"network_{number}"] = {
                "input": {"kernel": _kernel(arrays["model.input.conv.weight"])[0]},
                "input_norm": norm("input"),
                "depthwise_0": _array(arrays["model.dwc1.conv.weight"])[:, 0, :, 0].T,
                "depthwise_norm_0": norm("dwc1"),
                "depthwise_1": _array(arrays["model.dwc2.conv.weight"])[:, 0, :, 0].T,
                "depthwise_norm_1": norm("dwc2"),
                "output": {
                    "kernel": _kernel(arrays["model.output.weight"])[0],
                    "bias": _array(arrays["model.output.bias"]),
                },
                "filter": _array(arrays["filter_kernel"]),
            }
        except KeyError as error:
            raise ValueError(f"{file}: not a network of TMbed: no {error}.") from None
    module = tmbed_cnn.TmbedCnn(num_networks=len(files))
    d_model = len(params["network_0"]["input"]["kernel"])
    return head_folders.Head(module, params, (TMBED,), _encoder(d_model, "prot_t5"))
