"""Names of modules in gin files of earlier versions.

A later version may read the `config.gin` of a run that an earlier one wrote.
"""

MODULES = {
    "prottrans_jax.data.loader": "prottrans_jax.data.rows.loader",
    "prottrans_jax.losses": "prottrans_jax.objectives.losses",
    "prottrans_jax.metrics": "prottrans_jax.training.metrics",
    "prottrans_jax.schedules": "prottrans_jax.optimizers.schedules",
    "prottrans_jax.trainer": "prottrans_jax.training.trainer",
}
