"""Writes folders of frozen models, for `prottrans_jax.export`."""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
import time
from typing import Any

from flax import linen as nn
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

import prottrans_jax
from prottrans_jax import setting_trees, types
from prottrans_jax.checkpoints import opening
from prottrans_jax.embed import layerwise
from prottrans_jax.encoders import frozen_params
from prottrans_jax.files import digests, json_text, paths, writing
from prottrans_jax.interop import families, huggingface, vocabularies

PROVENANCE = "provenance.json"
STABLEHLO = "encoder.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
# Families whose attention needs a length that is known at trace time.
_FIXED_LENGTHS = ("xlnet", "transformer_xl")
# Values of the fields for the decoder and heads, which an encoder lacks.
_WITHOUT_HEADS = {
    "num_decoder_layers": 0,
    "lm_head": False,
    "pooler": False,
    "order_head": False,
    "replaced_head": False,
}
_NOTE = """\
# {title}

Exported by prottrans_jax {version} from {form}.

- `config.json`, `*.safetensors`: the model, in Hugging Face's layout
- `vocabulary.json`: id of every piece; U, Z, O, B and J are read as X
- `provenance.json`: training configuration, and the SHA-256 of every file

    import prottrans_jax as pt
    vectors = pt.load_encoder("{title}").embed(["PRTEINO", "SEQWENCE"])

Licence: the code of prottrans_jax is under Apache-2.0. The weights belong to whoever
trained them: state a licence here before you distribute them, and name the data.
(UniRef is under CC BY 4.0; the ProtTrans authors' released weights are under AFL-3.0.)
"""


def export(
    checkpoint: str | os.PathLike,
    output: pathlib.Path,
    *,
    encoder_only: bool = True,
    network: str | None = None,
    dtype: str | None = None,
    stablehlo: bool = False,
    vocabulary: str | os.PathLike | None = None,
) -> dict[str, int]:
    """Writes a frozen model.

    Args:
      checkpoint: Anything that `checkpoints.opening.read` accepts: a run of this
        library or another library's checkpoint.
      output: Output folder; may exist if it is empty.
      encoder_only: Whether to omit decoder and heads.
      network: "generator" or "discriminator" of an ELECTRA in training; None: the
        discriminator.
      dtype: Type of the weights; None: the stored type.
      stablehlo: Whether to also write the encoder as a program.
      vocabulary: Tokenizer file, for a checkpoint without one.

    Returns:
      Name and bytes of every file.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      FileExistsError: The output exists and is not empty.
      ValueError: The model is not supported.
    """
    with opening.opened(checkpoint, scan_layers=False, vocabulary=vocabulary) as model:
        return _export(
            opening.encoder_of(model, network), output, encoder_only, dtype, stablehlo
        )


def _export(
    model: families.Checkpoint,
    output: pathlib.Path,
    encoder_only: bool,
    dtype: str | None,
    stablehlo: bool,
) -> dict[str, int]:
    if model.unknown_ids:
        # A vocabulary.json needs the ids.
        raise ValueError(model.unknown_ids)
    if stablehlo and model.family.name in _FIXED_LENGTHS:
        raise ValueError(
            f"{model.source}: a {model.family.name} cannot be exported as a program of "
            "any length: its distances are fixed at trace time. Drop --stablehlo."
        )
    module, params = opening.model_of(model), model.params
    if encoder_only:
        module, params = encoder_alone(module, params)
    writing.refuse_existing(output)
    output.mkdir(parents=True, exist_ok=True)
    huggingface.write(output, module.config, params, dtype=dtype)
    ids = model.vocabulary
    vocabularies.write(output, ids, model.prefix_ids, model.suffix_ids)
    if ids.cls is not None and model.family.name != "xlnet":
        # For BERT's tokenizers.
        text = "".join(f"{piece}\n" for piece in ids.pieces)
        (output / "vocab.txt").write_text(text, encoding="utf-8")
    (output / "README.md").write_text(
        _NOTE.format(
            title=output.name,
            version=prottrans_jax.__version__,
            form=model.form,
        ),
        encoding="utf-8",
    )
    if stablehlo:
        _, weights = encoder_alone(module, params)
        program = to_stablehlo(module, weights, dtype)
        (output / STABLEHLO).write_bytes(program.serialize())
    files = sorted(path for path in output.iterdir())
    _write_json(output / PROVENANCE, _provenance(model, files, encoder_only, dtype))
    return {path.name: path.stat().st_size for path in sorted(output.iterdir())}


def print_files(files: Mapping[str, int], output: paths.Place) -> None:
    """Prints the result of `export` and the command that uses it.

    Args:
      files: Name and bytes of every file.
      output: The exported folder.
    """
    print(f"Exported to {output}:")
    for name, size in files.items():
        print(f"  {name}  {size:,} bytes")
    print(f"Next: prottrans embed -i proteins.fasta -o proteins.h5 -m {output}")


def encoder_alone(
    module: nn.Module, params: types.Params
) -> tuple[nn.Module, types.Params]:
    """A model without decoder and heads, and its parameters."""
    fields = {field.name for field in dataclasses.fields(module.config)}
    changes = {name: x for name, x in _WITHOUT_HEADS.items() if name in fields}
    module = module.clone(config=dataclasses.replace(module.config, **changes))
    return module, frozen_params.subtree(params, layerwise.encoder_shapes(module))


def to_stablehlo(
    module: nn.Module, params: types.Params, dtype: str | None = None
) -> jax_export.Exported:
    """The encoder and its weights as one portable program.

    Its arguments are tokens int32 and mask bool, both [batch, length]; its result is
    hidden states [batch, length, d_model]. Load it with
    `jax.export.deserialize(bytes).call`.

    Args:
      module: The model.
      params: Parameters of `encode`.
      dtype: Type of weights and products; None: as configured.
    """
    # Plain attention: the number of blocks in others cannot be symbolic.
    compute = dataclasses.replace(module.compute, attention="plain")
    if dtype in ("float32", "bfloat16"):
        compute = dataclasses.replace(compute, dtype=dtype)
    module = module.clone(compute=compute)
    weights = jax.tree.map(
        lambda x: np.asarray(x, dtype if x.ndim >= 2 and dtype else x.dtype), params
    )

    def encode(tokens, mask):
        return module.apply(
            {"params": weights}, tokens, mask, deterministic=True, method="encode"
        )

    limit = module.max_length
    constraints = () if limit is None else (f"length <= {limit}",)
    shape = jax_export.symbolic_shape("batch, length", constraints=constraints)
    return jax_export.export(jax.jit(encode), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)
    )


def _provenance(checkpoint, files, encoder_only, dtype) -> dict[str, Any]:
    metadata = checkpoint.source / "metadata.json"
    training: object = None
    if metadata.is_file():
        training = json_text.read_object(metadata)
    manifest = checkpoint.source / "sha256.json"
    step = checkpoint.source.name
    return {
        "exported_from": checkpoint.form,
        "source": str(checkpoint.source),
        "step": int(step) if step.isdecimal() else None,
        "source_manifest_sha256": digests.of_file(manifest)
        if manifest.is_file()
        else None,
        "part": "encoder" if encoder_only else "all",
        "dtype": dtype or checkpoint.stored_dtype.name,
        "training": training,
        "prottrans_jax": prottrans_jax.__version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "sha256": {path.name: digests.of_file(path) for path in files},
    }


def _write_json(path: pathlib.Path, content: setting_trees.Tree) -> None:
    text = json.dumps(content, indent=1, sort_keys=True, default=str) + "\n"
    path.write_text(text, encoding="utf-8")
