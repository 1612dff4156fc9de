"""Counts in messages: "1 protein", "2 proteins"."""


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun; the default plural is the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
