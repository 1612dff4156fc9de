"""Subcommands of `prottrans`; `prottrans_jax.cli` assembles them.

One file for each group of commands: `embedding` (embed), `tuning` (finetune),
`prediction` (predict), `evaluating` (autoeval), `generating` (generate), `inspection`
(info, reformat, verify), `labelling` (labels), `models` (models, export), `score`
(score), `contact_prediction` (contacts) and `supervising` (supervise). `console` has
the parser and messages, `configuration` reads flags from a file, `progress` prints the
progress line.

May import checkpoints, distributed, downstream, embed, encoders, files, generation,
interop, kernels, optimizers, proteins and scoring. No TensorFlow, no gin.
"""
