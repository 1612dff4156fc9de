"""docs/security.md names modules and tests that exist."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| threat")
]


def _quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_is_found():
    assert len(ROWS) > 20 and all(len(row) == 4 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_modules_and_tests_of_every_threat_exist(row):
    _, _, where, tests = row
    assert _quoted(where) and _quoted(tests)
    for module in _quoted(where):
        assert (ROOT / "prottrans_jax" / module).is_file(), module
    for test in _quoted(tests):
        file, _, name = test.partition("::")
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        functions = ast.parse(source).body
        assert name in {getattr(x, "name", "") for x in functions}, test


def test_the_policy_leads_to_the_page():
    assert "(docs/security.md)" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
