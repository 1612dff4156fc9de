"""Counts in messages: "1 protein", "2 proteins"."""


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun; the plural is the noun with an s unless it is given."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
