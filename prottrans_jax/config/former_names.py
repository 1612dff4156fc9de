"""Names in gin files of earlier versions, and their names in this one.

A later version may read the `config.gin` of a run that an earlier one wrote. `reading`
replaces former modules and reports former leaves; `checking` replaces former functions,
classes and parameters.
"""

import dataclasses

# Modules.
MODULES = {
    "prottrans_jax.data.loader": "prottrans_jax.data.rows.loader",
    "prottrans_jax.losses": "prottrans_jax.objectives.losses",
    "prottrans_jax.metrics": "prottrans_jax.training.metrics",
    "prottrans_jax.schedules": "prottrans_jax.optimizers.schedules",
    "prottrans_jax.trainer": "prottrans_jax.training.trainer",
}

# Leaves that are no longer there, without ".gin", and the leaf to use instead.
LEAVES = {
    "smoke/prot_t5": "sample.gin",
    "smoke/prot_bert": "sample_bert.gin",
    "smoke/prot_albert": "sample_albert.gin",
    "smoke/prot_electra": "sample_electra.gin",
    "smoke/prot_xlnet": "sample_xlnet.gin",
    "smoke/prot_transformer_xl": "sample_transformer_xl.gin",
}


@dataclasses.dataclass(frozen=True)
class Moved:
    """A parameter that is now one of another function or class.

    Attributes:
      parameter: its full name now.
      holder: full name of the parameter that takes the object with `parameter`. If a
        file does not bind it, it is bound to that object.
    """

    parameter: str
    holder: str


# Functions and classes by full name, with the module's name in this version.
_SCHEDULES = "prottrans_jax.optimizers.schedules"
CONFIGURABLES: dict[str, str] = {
    f"{_SCHEDULES}.by_factors": f"{_SCHEDULES}.ByFactors",
    f"{_SCHEDULES}.constant": f"{_SCHEDULES}.Constant",
    f"{_SCHEDULES}.inverse_sqrt": f"{_SCHEDULES}.InverseSqrt",
    f"{_SCHEDULES}.linear_warmup_linear_decay": (
        f"{_SCHEDULES}.LinearWarmupLinearDecay"
    ),
}

_COMPUTE_FIELDS = (
    *("dtype", "param_dtype", "attention", "attention_block_size"),
    *("remat_policy", "scan_layers"),
)
_MODELS = {
    "t5.T5Config": "t5.T5",
    "bert.BertConfig": "bert.Bert",
    "albert.AlbertConfig": "albert.Albert",
    "electra.ElectraConfig": "electra.Electra",
    "electra.ElectraEncoderConfig": "electra.ElectraEncoder",
    "xlnet.XLNetConfig": "xlnet.XLNet",
    "transformer_xl.TransformerXLConfig": "transformer_xl.TransformerXL",
}

_TRAIN = "prottrans_jax.training.trainer.train"
_SETTINGS = "prottrans_jax.training.run_settings"

# Parameters by full name, with the names of module, function and class in this version.
PARAMETERS: dict[str, Moved] = {
    # How a model is computed stood in the configuration of its family.
    f"prottrans_jax.models.{config}.{field}": Moved(
        parameter=f"prottrans_jax.layers.compute.ComputeConfig.{field}",
        holder=f"prottrans_jax.models.{model}.compute",
    )
    for config, model in _MODELS.items()
    for field in _COMPUTE_FIELDS
} | {
    # The loop took its settings one by one.
    f"{_TRAIN}.{former}": Moved(f"{_SETTINGS}.{name}", f"{_TRAIN}.{holder}")
    for former, holder, name in (
        ("checkpoint_period", "checkpoints", "Checkpoints.period"),
        ("keep", "checkpoints", "Checkpoints.keep"),
        ("keep_period", "checkpoints", "Checkpoints.keep_period"),
        ("save_dtype", "checkpoints", "Checkpoints.save_dtype"),
        ("on_save_error", "checkpoints", "Checkpoints.on_save_error"),
        ("eval_period", "evaluation", "Evaluation.period"),
        ("eval_batches", "evaluation", "Evaluation.batches"),
        ("log_period", "logs", "Logs.period"),
        ("profile_steps", "logs", "Logs.profile_steps"),
        ("init_from", "start", "Start.init_from"),
        ("accept_config_changes", "start", "Start.accept_config_changes"),
        ("accept_lost_steps", "start", "Start.accept_lost_steps"),
        ("startup_timeout_s", "limits", "Limits.startup_s"),
        ("step_timeout_s", "limits", "Limits.step_s"),
        ("step_timeout_factor", "limits", "Limits.step_factor"),
        ("on_nonfinite", "nonfinite", "NonFinite.policy"),
        ("max_skipped_steps", "nonfinite", "NonFinite.max_skipped_steps"),
    )
}
