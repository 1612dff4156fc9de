"""ProtTrans protein language models in JAX/Flax.

The public interface:

  load_encoder, Encoder  a frozen encoder: `embed`, `stream`, `embed_fasta`, `tokenize`,
                         `attention_maps`; calling it is jittable
  load_model, Model      a frozen model with decoder and heads: token ids to logits
  __version__            version of the package

`prottrans_jax.scoring` has likelihoods of proteins, scores of variants and contacts.

Command-line programs: `prottrans` (embed, score, contacts, models, info, verify, export
and others), and `python -m prottrans_jax.train`, `.evaluate`, `.prepare`,
`.precompile`, `.convert` and `.export`. `import prottrans_jax.tasks` registers the
SeqIO tasks. `prottrans_jax.gin` holds the gin files; classes and functions that they
bind are public through gin. `prottrans_jax.checkpoints.opening.read` opens any
supported checkpoint.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prottrans_jax.encoders.frozen_models import Encoder, Model
    from prottrans_jax.encoders.loading import load_encoder, load_model

__version__ = "0.1.0"
__all__ = ["Encoder", "Model", "__version__", "load_encoder", "load_model"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Imported on first use: `import prottrans_jax` alone does not import JAX.
    if name in __all__:
        from prottrans_jax.encoders import frozen_models, loading

        return getattr(loading if name.startswith("load_") else frozen_models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
