"""ProtTrans protein language models in JAX/Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prottrans_jax.encoders.loading import Encoder, Model, load_encoder, load_model

__version__ = "0.1.0"
_OF_ENCODERS = ("Encoder", "Model", "load_encoder", "load_model")
__all__ = ["Encoder", "Model", "__version__", "load_encoder", "load_model"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Lazily: `import prottrans_jax` alone costs nothing, not even JAX.
    if name in _OF_ENCODERS:
        from prottrans_jax.encoders import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
