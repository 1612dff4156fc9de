"""JSON from files that others may have made."""

import json
from typing import Any

from prottrans_jax.files import paths


def parse(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
      ValueError: The text is not JSON, or its brackets are nested some thousand deep.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def read_object(path: paths.Place) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It holds no JSON object in UTF-8; names the file.
    """
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object.")
    return content
