"""Signatures read from source are those that Python gives after an import."""

import importlib
import inspect
import subprocess
import sys

import pytest

from prottrans_jax.config import setting_types, signatures

MODULES = [
    "data.rows.loader",
    "models.albert",
    "models.bert",
    "models.electra",
    "models.t5",
    "models.transformer_xl",
    "models.xlnet",
    "objectives.causal_lm",
    "objectives.denoising",
    "objectives.masked_lm",
    "objectives.permutation_lm",
    "objectives.replaced_token_detection",
    "optimizers.algorithms",
    "partitioning",
    "optimizers.schedules",
    "training.trainer",
]


def live(target):
    """Name -> default as `inspect` sees them."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter.default
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in kinds and name != "self"
    }


@pytest.mark.parametrize("name", MODULES)
def test_every_signature_of_a_module_is_read_as_python_has_it(name):
    module = importlib.import_module(f"prottrans_jax.{name}")
    source = signatures.find(module.__name__)
    assert source is not None
    checked = 0
    for public in source.public():
        symbol, target = source.lookup(public), getattr(module, public)
        if symbol.kind not in ("function", "class") or symbol.module != module.__name__:
            continue
        read = signatures.parameters(symbol)
        if read is None:
            continue
        expected = live(target)
        assert set(read) == set(expected), public
        for parameter, default in expected.items():
            assert read[parameter].required == (default is inspect.Parameter.empty)
            if read[parameter].default is not setting_types.UNKNOWN:
                assert read[parameter].default == default
        checked += 1
    assert checked


def test_names_are_found_through_imports_of_ours():
    loader = signatures.find("prottrans_jax.data.rows.loader")
    symbol = signatures.resolve(loader, "streams.Corruption")
    assert (symbol.kind, symbol.module) == (
        "class",
        "prottrans_jax.data.corruption.streams",
    )
    assert signatures.resolve(loader, "streams.NoSuchThing") is None


def test_reading_signatures_imports_nothing_heavy():
    code = (
        "import sys; from prottrans_jax.config import signatures as s; "
        "m = s.find('prottrans_jax.data.rows.loader'); "
        "assert s.parameters(m.lookup('RowLoader')); "
        "assert s.locate('prottrans_jax.tasks.bfd'); "
        "bad = {'jax', 'tensorflow', 'seqio', 'flax'} & set(sys.modules); "
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
