"""Who may import whom: the picture in docs/architecture.md, held by reading imports."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAINS = ("train", "evaluate", "precompile", "prepare", "convert", "export")
GIN = (*MAINS, "gin_utils", "gin_check", "gin_config")
SEQIO = ("data", "tasks")


def _modules():
    """(dotted name inside the package, file) of every module."""
    for folder, prefix in (("prottrans_jax", ""), ("tasks", "tasks.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield prefix + ".".join(parts).removesuffix(".__init__"), path


def imports_of(source: str) -> set[str]:
    """Dotted names that a source imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {name: imports_of(path.read_text()) for name, path in _modules()}


def _tops(name: str) -> set[str]:
    return {imported.split(".")[0] for imported in IMPORTS[name]}


def _ours(name: str) -> set[str]:
    """First component below prottrans_jax of what a module imports."""
    prefix = "prottrans_jax."
    return {
        imported.removeprefix(prefix).split(".")[0]
        for imported in IMPORTS[name]
        if imported.startswith(prefix)
    }


def _of(*packages: str) -> list[str]:
    return [n for n in IMPORTS if n.split(".")[0] in packages]


def test_reading_imports_sees_those_inside_functions():
    source = "def f():\n  import tensorflow as tf\n  from a.b import c\n"
    assert imports_of(source) == {"tensorflow", "a.b.c"}


@pytest.mark.parametrize("library", ["tensorflow", "seqio", "tensorflow_datasets"])
def test_only_data_and_tasks_import(library):
    users = {name for name in IMPORTS if library in _tops(name)}
    # Files in TensorFlow's format; imported when one is read.
    users -= {"interop.mesh_tf"}
    assert users and {name.split(".")[0] for name in users} <= {*SEQIO, "prepare"}


def test_gin_lives_in_mains_and_gin_modules():
    users = {name for name in IMPORTS if "gin" in _tops(name)}
    assert users and {name.split(".")[0] for name in users} <= set(GIN)


def test_flags_live_in_mains():
    users = {name for name in IMPORTS if "absl.flags" in IMPORTS[name]}
    assert users and users <= {*MAINS, "command_flags", "gin_utils"}


def test_nobody_imports_a_main():
    # gin would import the running script a second time, and its flags with it.
    for name in IMPORTS:
        assert not _ours(name) & set(MAINS), name


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("files", {"files"}),
        ("stop_signals", set()),
        ("distributed", {"distributed"}),
        ("setting_types", set()),
        ("config", {"config", "data", "files", "gin_config", "setting_types"}),
        ("layers", {"layers", "types"}),
        ("models", {"models", "layers", "setting_types", "types"}),
        ("objectives", {"objectives", "losses", "models", "setting_types", "types"}),
        ("losses", set()),
        ("partitioning", set()),
        ("vocabulary", set()),
        ("data", {"data", "fasta", "files", "proteins", "unpacking", "vocabulary"}),
        ("fasta", {"proteins", "unpacking", "vocabulary"}),
        ("unpacking", set()),
        ("proteins", {"fasta", "plurals", "proteins", "unpacking", "vocabulary"}),
        ("plurals", set()),
        ("tasks", {"tasks", "data", "vocabulary"}),
        (
            "commands",
            {
                "commands",
                "embed",
                "encoders",
                "files",
                "interop",
                "plurals",
                "setting_types",
            },
        ),
        (
            "embed",
            {
                "embed",
                "fasta",
                "files",
                "hardware",
                "interop",
                "layers",
                "plurals",
                "proteins",
                "setting_types",
                "types",
                "vocabulary",
            },
        ),
        (
            "encoders",
            {
                "attention_maps",
                "embed",
                "files",
                "frozen_params",
                "interop",
                "layers",
                "proteins",
                "sources",
                "types",
                "vocabulary",
            },
        ),
        ("attention_maps", {"layers", "types"}),
        ("frozen_params", {"interop", "layers", "types", "vocabulary"}),
        (
            "interop",
            {
                "files",
                "interop",
                "layers",
                "mismatches",
                "models",
                "types",
                "vocabulary",
            },
        ),
        (
            "sources",
            {
                "checkpoints",
                "files",
                "interop",
                "models",
                "run_identity",
                "stored_arrays",
            },
        ),
        (
            "trainer",
            {
                "checkpoints",
                "distributed",
                "evaluation",
                "files",
                "infeed",
                "logbook",
                "metrics",
                "multihost",
                "roll_call",
                "run_identity",
                "setting_types",
                "sources",
                "train_state",
                "train_step",
                "types",
                "training",
            },
        ),
        ("training", {"files", "training"}),
    ],
)
def test_package_imports_only(package, allowed):
    # What `python -m PACKAGE` runs stands above the package.
    names = [name for name in _of(package) if not name.endswith("__main__")]
    assert names
    for name in names:
        # A flag that any loop may read: it imports the standard library alone.
        assert _ours(name) - {"stop_signals"} <= allowed, name


def test_only_partitioning_names_mesh_axes():
    for name, path in _modules():
        if name != "partitioning":
            text = path.read_text()
            for axis in ('"data", "model"', 'PartitionSpec("', 'P("'):
                assert axis not in text, (name, axis)


def test_gin_folder_does_not_shadow_gin_config():
    assert not (ROOT / "gin" / "__init__.py").exists()


def test_tasks_have_one_name():
    # Under a second name SeqIO would see every task registered twice.
    for name, imported in IMPORTS.items():
        assert not any(i.split(".")[0] == "tasks" for i in imported), name


@pytest.mark.parametrize(
    "module", ["trainer", "encoders", "embed.job", "embed.__main__"]
)
def test_runs_without_tensorflow_seqio_gin_and_torch(module):
    code = (
        f"import sys, prottrans_jax.{module}; "
        "bad = {'tensorflow', 'seqio', 'gin', 'torch'} & set(sys.modules); "
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
