"""Subcommands of `prottrans`; `prottrans_jax.cli` assembles them.

One file for each group of commands: `embedding` (embed), `inspection` (info, reformat,
verify) and `models`. `console` holds exit statuses and messages, `configuration` flags
from a file, `progress` the progress line.

May import everything that needs no TensorFlow and no gin.
"""
