"""Modules by the names that gin files of earlier versions import them under.

A run's `config.gin` is read again when it is resumed, by whatever version resumes it.
"""

MODULES = {
    "prottrans_jax.data.loader": "prottrans_jax.data.rows.loader",
    "prottrans_jax.losses": "prottrans_jax.objectives.losses",
    "prottrans_jax.metrics": "prottrans_jax.training.metrics",
    "prottrans_jax.schedules": "prottrans_jax.optimizers.schedules",
    "prottrans_jax.trainer": "prottrans_jax.training.trainer",
}
