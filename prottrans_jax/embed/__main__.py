"""`python -m prottrans_jax.embed`: the same as `prottrans embed`."""

import sys

from prottrans_jax import cli

if __name__ == "__main__":
    sys.argv.insert(1, "embed")
    sys.exit(cli.main())
