"""Manifests that were made to mislead."""

import json
import os

from etils import epath
import pytest

from prottrans_jax.checkpoints import manifests
from prottrans_jax.files import digests


@pytest.fixture
def step(tmp_path):
    folder = epath.Path(tmp_path / "7")
    folder.mkdir()
    (folder / "array").write_text("numbers")
    manifests.write(folder, 7)
    assert manifests.problem(folder) is None
    return folder


def rename_in_manifest(step, name):
    """The manifest names another file, and its own hash is right."""
    manifest = json.loads((step / manifests.NAME).read_text())
    del manifest["sha256"]
    manifest["files"] = {name: next(iter(manifest["files"].values()))}
    manifest["sha256"] = digests.of_json(manifest)
    (step / manifests.NAME).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["/dev/zero", "../other", "a/../../other"])
def test_files_outside_the_step_are_not_read(step, name):
    rename_in_manifest(step, name)
    assert "outside the step" in (manifests.problem(step) or "")


def test_a_link_to_a_device_is_not_read(step):
    (step / "array").unlink()
    os.symlink("/dev/zero", step / "array")
    assert manifests.problem(step) == f"{step / 'array'}: not a regular file"


def test_a_manifest_nested_too_deeply_is_damage(step):
    (step / manifests.NAME).write_text("[" * 100_000)
    assert "unreadable" in (manifests.problem(step) or "")


def test_deleting_a_step_leaves_what_its_links_lead_to(step, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("kept")
    os.symlink(tmp_path / "elsewhere", step / "link")
    manifests.delete(step)
    assert not step.exists()
    assert (tmp_path / "elsewhere" / "file").read_text() == "kept"
