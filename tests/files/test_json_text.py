"""JSON from files that others may have made."""

import pytest

from prottrans_jax.files import json_text


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[1", b"\xff"])
def test_a_text_that_is_no_json_or_nested_too_deeply_is_a_value_error(text):
    with pytest.raises(ValueError):
        json_text.parse(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "is not JSON: its brackets are nested too deeply"),
        (b"{", "is not JSON"),
        (b"\xff{}", "is not JSON"),
        (b"[1]", "is not a JSON object"),
    ],
)
def test_a_file_without_an_object_is_named(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} {said}"):
        json_text.read_object(path)
