"""Who may import whom: the picture in docs/architecture.md, held by reading imports."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAINS = (
    *("train", "finetune", "evaluate", "precompile", "prepare", "convert", "export"),
)
GIN = (*MAINS, "config")
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
    return _ours_of(IMPORTS[name])


def _ours_of(imported: set[str]) -> set[str]:
    prefix = "prottrans_jax."
    return {
        name.removeprefix(prefix).split(".")[0]
        for name in imported
        if name.startswith(prefix)
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


def test_kernels_import_no_library_but_jax():
    libraries = {"absl", "jax", "jaxtyping", "numpy", "prottrans_jax"}
    for name in _of("kernels"):
        assert _tops(name) - set(sys.stdlib_module_names) <= libraries, name
        assert _ours(name) <= {"kernels"}, name


def test_gin_lives_in_mains_and_gin_modules():
    users = {name for name in IMPORTS if "gin" in _tops(name)}
    assert users and {name.split(".")[0] for name in users} <= set(GIN)


def test_flags_live_in_mains():
    users = {name for name in IMPORTS if "absl.flags" in IMPORTS[name]}
    assert users and users <= {*MAINS, "config.command_flags", "config.mains"}


def test_nobody_imports_a_main():
    # gin would import the running script a second time, and its flags with it.
    for name in IMPORTS:
        assert not _ours(name) & set(MAINS), name


# Each room and the other rooms that it may import. Besides, every room may import
# SHARED_MODULES, which import nothing else of the package.
ROOMS = {
    "types": "",
    "files": "",
    "proteins": "",
    "partitioning": "",
    "optimizers": "",
    "distributed": "",
    "costs": "",
    "kernels": "",
    "layers": "kernels types",
    "models": "layers types",
    "objectives": "models types",
    "interop": "files layers models proteins types",
    "checkpoints": "distributed files interop layers models types",
    "training": "checkpoints costs distributed files partitioning types",
    "data": "files proteins",
    "config": "data files",
    "embed": "costs files interop kernels proteins types",
    "encoders": "checkpoints embed files interop kernels layers proteins types",
    "downstream": (
        "checkpoints embed encoders files interop layers models objectives optimizers "
        "partitioning proteins training types"
    ),
    "tasks": "data downstream files proteins",
    "scoring": "embed encoders files kernels models proteins types",
    "generation": "encoders files models proteins types",
    "commands": (
        "checkpoints distributed downstream embed encoders files generation interop "
        "kernels optimizers proteins scoring"
    ),
}
SHARED_MODULES = {
    "prottrans_jax.config.setting_types",
    "prottrans_jax.data.corruption.position_kinds",
    "prottrans_jax.differences",
    "prottrans_jax.distributed.stop_signals",
    "prottrans_jax.files.digests",
    "prottrans_jax.printable",
    "prottrans_jax.setting_trees",
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_below_it(room):
    # What `python -m ROOM` runs stands above the room.
    names = [name for name in _of(room) if not name.endswith("__main__")]
    assert names
    for name in names:
        others = _ours_of(IMPORTS[name] - SHARED_MODULES) - {room}
        assert others <= set(ROOMS[room].split()), name


@pytest.mark.parametrize("module", sorted(SHARED_MODULES))
def test_a_shared_module_imports_only_shared_modules_of_ours(module):
    imported = IMPORTS[module.removeprefix("prottrans_jax.")]
    assert not _ours_of(imported - SHARED_MODULES)


def test_no_two_rooms_import_each_other():
    order: list[str] = []
    for room, below in ROOMS.items():
        assert set(below.split()) <= set(order), room
        order.append(room)


ROOM_FOLDERS = sorted(
    path.parent
    for path in (ROOT / "prottrans_jax").rglob("__init__.py")
    if path.parent.name != "prottrans_jax"
)


@pytest.mark.parametrize("folder", ROOM_FOLDERS, ids=lambda folder: folder.name)
def test_docstring_of_a_room_names_each_of_its_modules(folder):
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    modules = {path.stem for path in folder.glob("[a-z]*.py")}
    modules |= {path.parent.name for path in folder.glob("*/__init__.py")}
    assert not modules - set(re.findall(r"\w+", docstring or ""))


@pytest.mark.parametrize(
    "room", [room for room in ROOMS if (ROOT / "prottrans_jax" / room).is_dir()]
)
def test_docstring_of_a_room_says_what_it_may_import(room):
    source = (ROOT / "prottrans_jax" / room / "__init__.py").read_text()
    docstring = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    sentence = re.search(r"May import ([^.]*)\.|Imports no other room\b", docstring)
    assert sentence
    named = set(re.findall(r"\w+", sentence[1] or "")) - {"and"}
    assert named == set(ROOMS[room].split())


def test_no_file_name_stands_twice():
    paths = (ROOT / "prottrans_jax").rglob("[a-z]*.py")
    names = [path.name for path in paths]
    assert {name for name in names if names.count(name) > 1} == set()


def test_only_digests_computes_hashes():
    users = {name for name in IMPORTS if "hashlib" in _tops(name)}
    # setup.py runs x86_sources without the package.
    assert users == {"files.digests", "kernels.x86_sources"}


def test_locks_renames_and_synchronised_writes_live_in_files():
    for name, path in _modules():
        if not name.startswith("files"):
            text = path.read_text()
            for call in ("fcntl", "os.replace(", "os.rename(", "fsync("):
                assert call not in text, (name, call)


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
    "module",
    [
        *("training.trainer", "encoders.loading", "embed.job", "embed.__main__"),
        *("downstream.finetuning", "downstream.predicting"),
        "generation.generated_files",
    ],
)
def test_runs_without_tensorflow_seqio_gin_and_torch(module):
    code = (
        f"import sys, prottrans_jax.{module}; "
        "bad = {'tensorflow', 'seqio', 'gin', 'torch'} & set(sys.modules); "
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
