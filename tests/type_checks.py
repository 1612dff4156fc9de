"""How jaxtyping's import hook checks annotations; named in pyproject.toml.

jaxtyping imports the first part of a dotted name only, so this is not in `cases`.
"""

from beartype import BeartypeConf, beartype

# PEP 484: an int is accepted where a float is annotated.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
