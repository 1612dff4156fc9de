"""The subcommands of `prottrans`; see `prottrans_jax.cli`."""
