"""T5X's flags, macros and bindings that have another name here, or none.

They are refused with the name to use. What has the same name in both (`--gin_file`,
MODEL_DIR, TRAIN_STEPS, `train.total_steps` ...) is not listed. docs/pretraining.md has
the whole table. T5X: github.com/google-research/t5x, commit cc342d4.
"""

_MODES = (
    "a command for each mode: python -m prottrans_jax.train, prottrans_jax.evaluate, "
    "prottrans_jax.export, prottrans_jax.precompile, or prottrans embed"
)
_CACHE = "records of python -m prottrans_jax.prepare replace SeqIO's cache: --data_dir"
_DATA = "the task decides, and --data_dir names its records"

# Flag without "--" -> what to give here.
FLAGS = {
    "dry_run": (
        "python -m prottrans_jax.precompile with the same --gin_file and --gin_bindings"
    ),
    "multiprocess_gpu": "nothing: processes join by themselves, or --num_processes",
    "run_mode": _MODES,
    "seqio_additional_cache_dirs": _CACHE,
    "tfds_data_dir": (
        "--data_dir, a folder of records of python -m prottrans_jax.prepare"
    ),
}

# Macro -> what to set here.
MACROS = {
    "ACTIVATION_DTYPE": "DTYPE",
    "ACTIVATION_PARTITIONING_DIMS": "PARTITIONING",
    "CHECKPOINT_PATH": "INITIAL_CHECKPOINT_PATH, or --model_dir of evaluate",
    "EMBED_DIM": "t5.T5Config.d_model",
    "EVAL_OUTPUT_DIR": "nothing: results are written to MODEL_DIR",
    "EVAL_STEPS": "EVAL_BATCHES",
    "HEAD_DIM": "t5.T5Config.head_dim",
    "INFER_OUTPUT_DIR": "prottrans embed --output",
    "LABEL_SMOOTHING": "denoising.Denoising.label_smoothing",
    "LOSS_NORMALIZING_FACTOR": (
        "nothing: the loss is the mean over all targets of the batch"
    ),
    "MIXTURE_OR_TASK_MODULE": (
        "nothing for tasks of the package; import others in a gin file, with "
        "--trust_config"
    ),
    "MLP_DIM": "t5.T5Config.d_ff",
    "NUM_DECODER_LAYERS": "t5.T5Config.num_decoder_layers",
    "NUM_EMBEDDINGS": "t5.T5Config.vocab_size",
    "NUM_ENCODER_LAYERS": "t5.T5Config.num_layers",
    "NUM_HEADS": "t5.T5Config.num_heads",
    "PARAMETER_PARTITIONING_DIMS": "PARTITIONING",
    "SCAN_LAYERS": "compute.ComputeConfig.scan_layers",
    "SHUFFLE_BUFFER_SIZE": "nothing: each epoch is shuffled as a whole",
    "TRAIN_STEPS_RELATIVE": "TRAIN_STEPS, the number of all steps",
    "USE_CACHED_TASKS": f"nothing: {_CACHE}",
    "USE_HARDWARE_RNG": "nothing: random bits depend on RANDOM_SEED and the step only",
    "VOCABULARY": "nothing: it belongs to the task and the model",
    "Z_LOSS": "denoising.Denoising.z_loss",
}

# End of a binding's name -> what to set here.
BINDINGS = {
    "DatasetConfig.batch_size": "BATCH_SIZE",
    "DatasetConfig.mixture_or_task_name": (
        "MIXTURE_OR_TASK_NAME, EVAL_MIXTURE_OR_TASK_NAME"
    ),
    "DatasetConfig.module": MACROS["MIXTURE_OR_TASK_MODULE"],
    "DatasetConfig.pack": "PACK",
    "DatasetConfig.seed": "RANDOM_SEED",
    "DatasetConfig.shuffle": "SHUFFLE_TRAIN_EXAMPLES",
    "DatasetConfig.split": "EVAL_SPLIT",
    "DatasetConfig.task_feature_lengths": "TASK_FEATURE_LENGTHS",
    "DatasetConfig.use_cached": MACROS["USE_CACHED_TASKS"],
    "DatasetConfig.use_custom_packing_ops": "nothing: PACK fills rows of proteins",
    "EncoderDecoderModel.label_smoothing": MACROS["LABEL_SMOOTHING"],
    "EncoderDecoderModel.loss_normalizing_factor": MACROS["LOSS_NORMALIZING_FACTOR"],
    "EncoderDecoderModel.z_loss": MACROS["Z_LOSS"],
    "PjitPartitioner.activation_partitioning_dims": "PARTITIONING",
    "PjitPartitioner.logical_axis_rules": "PARTITIONING",
    "PjitPartitioner.model_parallel_submesh": "PARTITIONING and MODEL_PARALLEL",
    "PjitPartitioner.num_partitions": "PARTITIONING and MODEL_PARALLEL",
    "PjitPartitioner.parameter_partitioning_dims": "PARTITIONING",
    "RestoreCheckpointConfig.path": "INITIAL_CHECKPOINT_PATH",
    "SaveCheckpointConfig.dtype": "run_settings.Checkpoints.save_dtype",
    "SaveCheckpointConfig.keep": "run_settings.Checkpoints.keep",
    "SaveCheckpointConfig.period": "CHECKPOINT_PERIOD",
    "SaveCheckpointConfig.save_dataset": (
        "nothing: every checkpoint says the next row of the data"
    ),
    "Trainer.learning_rate_fn": "optimizers.Adafactor.learning_rate",
    "Trainer.num_microbatches": "NUM_MICROBATCHES",
    "create_learning_rate_scheduler.base_learning_rate": (
        "schedules.InverseSqrt.peak, or LEARNING_RATE where a leaf has it"
    ),
    "create_learning_rate_scheduler.factors": (
        "schedules.ByFactors or another class of schedules"
    ),
    "create_learning_rate_scheduler.warmup_steps": (
        "schedules.InverseSqrt.warmup_steps, or WARMUP_STEPS where a leaf has it"
    ),
    "train.eval_steps": "EVAL_BATCHES",
    "train.gc_period": "nothing",
    "train.infer_eval_dataset_cfg": "eval/loader.RowLoader.task",
    "train.partitioner_cls": "partitioning.Partitioner",
    "train.random_seed": "RANDOM_SEED",
    "train.stats_period": "LOG_PERIOD",
    "train.train_dataset_cfg": f"train/loader.RowLoader: {_DATA}",
    "train.train_eval_dataset_cfg": f"eval/loader.RowLoader: {_DATA}",
    "train.use_hardware_rng": MACROS["USE_HARDWARE_RNG"],
}


def flag(name: str) -> str:
    """Message for a flag of T5X that is unknown here; "" for other flags."""
    name = name if name in FLAGS else name.removeprefix("no")
    return f"--{name} is T5X's. Here: {FLAGS[name]}." if name in FLAGS else ""


def macro(name: str) -> str:
    """Sentence for a macro of T5X that nothing uses here; "" for other macros."""
    return f" It is T5X's. Here: {MACROS[name]}." if name in MACROS else ""


def binding(selector: str, parameter: str) -> str:
    """Message for a parameter of T5X that is unknown here; "" for others."""
    name = f"{selector.rpartition('.')[2]}.{parameter}"
    if name not in BINDINGS:
        return ""
    return f"{selector}.{parameter} is T5X's. Here: {BINDINGS[name]}."
