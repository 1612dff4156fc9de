"""Parameters of a run are read by another, also while the first goes on."""

from jax import numpy as jnp
import numpy as np
import pytest

from cases.checkpoint_cases import abstract, assert_bit_equal, make_state, save_steps
from prottrans_jax.checkpoints import manifests, stored_arrays, stored_steps


def test_parameters_of_step_zero_are_read_only_if_it_is_named(tmp_path):
    save_steps(tmp_path, [0, 10])
    (tmp_path / "10" / "_METADATA").write_text("")
    params = abstract(make_state(0)["params"])
    with pytest.raises(manifests.CheckpointError, match="name the step to read"):
        stored_steps.load_params(tmp_path, params)
    stored_steps.load_params(tmp_path / "0", params)
    with pytest.raises(manifests.CheckpointError, match="name the step to read"):
        stored_steps.read_params(tmp_path)


@pytest.mark.parametrize("how", ["params", "numpy"])
def test_newer_step_is_read_when_the_newest_is_deleted_meanwhile(
    tmp_path, monkeypatch, caplog, how
):
    save_steps(tmp_path, [1])
    read = stored_arrays.read

    def read_while_the_run_goes_on(path, *args, **kwargs):
        if path.name == "1":
            save_steps(tmp_path, [2], keep=1)
            assert not path.exists()
            return [np.zeros(leaf.shape, leaf.dtype) for leaf in args[0].values()]
        return read(path, *args, **kwargs)

    monkeypatch.setattr(stored_arrays, "read", read_while_the_run_goes_on)
    params = make_state(2)["params"]
    if how == "params":
        assert_bit_equal(stored_steps.load_params(tmp_path, abstract(params)), params)
    else:
        assert stored_steps.read_params(tmp_path)[2].name == "2"
    assert "was deleted while it was read. Taking a newer step." in caplog.text


def test_step_that_is_deleted_while_it_is_read_by_number_is_named(
    tmp_path, monkeypatch
):
    save_steps(tmp_path, [1, 2])

    def read_while_the_run_goes_on(path, *args, **kwargs):
        manifests.delete(path)
        raise FileNotFoundError(path / "d")

    monkeypatch.setattr(stored_arrays, "read", read_while_the_run_goes_on)
    params = abstract(make_state(0)["params"])
    with pytest.raises(manifests.GoneError, match="1 was deleted while it was read"):
        stored_steps.load_params(tmp_path, params, step=1)


def test_a_checkpoint_of_another_depth_is_five_lines_a_count_and_a_remedy(tmp_path):
    save_steps(tmp_path / "checkpoints", [1])
    params = make_state(1)["params"]
    del params["scale"]
    for layer in range(30):
        params[f"layers_{layer}"] = {"wo": jnp.zeros((2, 3))}
    with pytest.raises(stored_arrays.MismatchError) as caught:
        stored_steps.load_params(tmp_path, abstract(params))
    first, *lines, last = str(caught.value).splitlines()
    assert str(tmp_path) in first
    assert [line.strip() for line in lines] == [
        "- params/layers_0/wo float32[2, 3]",
        "+ params/scale float32[7]",
    ]
    assert last.startswith("31 in all: 0 of another shape, 30 in the model only, 1 in")
    assert "config.gin" in last


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/8"])
def test_parameters_of_another_run_are_loaded(tmp_path, below):
    save_steps(tmp_path / "checkpoints", [7, 8])
    params = make_state(8)["params"]
    loaded = stored_steps.load_params(tmp_path / below, abstract(params))
    assert_bit_equal(loaded, params)


def test_a_partial_load_keeps_defaults_and_logs_both_sides(tmp_path, caplog):
    save_steps(tmp_path / "checkpoints", [8])
    defaults = make_state(1)["params"] | {"head": jnp.full((5,), 2.0)}
    defaults["scale"] = jnp.ones((4,))
    del defaults["encoder"]["half"]
    with pytest.raises(stored_arrays.MismatchError, match="params/head"):
        stored_steps.load_params(tmp_path, abstract(defaults))
    loaded = stored_steps.load_params(tmp_path, abstract(defaults), defaults=defaults)
    for line in (
        "- params/head",
        "+ params/en",
    ):
        assert line in caplog.text
    assert "! params/scale: model float32[4], checkpoint float32[7]" in caplog.text
    trained = make_state(8)["params"]["encoder"]["layers"]
    assert_bit_equal(loaded["encoder"]["layers"], trained)
    assert_bit_equal(loaded["head"], defaults["head"])
    assert_bit_equal(loaded["scale"], defaults["scale"])
