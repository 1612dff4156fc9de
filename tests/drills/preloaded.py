"""Imports what the mains import; `processes` forks from a process that has it."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# JAX reads these when it is imported. Every start would compile the same program.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"prottrans_jax_drill_cache_{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

from cases import checkpoint_cases, trainer_cases  # noqa: F401
from drills import resume  # noqa: F401
from prottrans_jax.data.records import preparing  # noqa: F401
from prottrans_jax.data.rows import loader  # noqa: F401
from prottrans_jax.distributed import start  # noqa: F401
from prottrans_jax.encoders import exporting  # noqa: F401
from prottrans_jax.models import t5, transformer_xl  # noqa: F401
from prottrans_jax.objectives import causal_lm, denoising  # noqa: F401
from prottrans_jax.optimizers import adafactor  # noqa: F401
import prottrans_jax.tasks  # noqa: F401
from prottrans_jax.training import trainer  # noqa: F401
