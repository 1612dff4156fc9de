"""A run goes on with the whole state of a run in T5X's format."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from cases import runs, trainer_cases
from prottrans_jax.checkpoints import manifests, opening, stored_arrays, t5x_states
from prottrans_jax.files import folders
from prottrans_jax.interop import t5x
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import t5
from prottrans_jax.objectives import denoising
from prottrans_jax.optimizers import algorithms


def _arguments(tmp_path, scan_layers=True, **changes):
    """Of a model with matrices that Adafactor factors, some of them square."""
    config = t5.T5Config(
        vocab_size=128,
        num_layers=2,
        num_decoder_layers=1,
        num_heads=4,
        head_dim=32,
        d_model=128,
        d_ff=160,
        dropout_rate=0.0,
    )
    model = t5.T5(config, compute_config.ComputeConfig(scan_layers=scan_layers))
    adafactor = algorithms.Adafactor(learning_rate=0.02)
    return trainer_cases.arguments(
        tmp_path,
        objective=denoising.Denoising(model),
        optimizer=adafactor,
        eval_data={},
    ) | {"total_steps": 3, "checkpoints_period": 3, **changes}


def _in_t5xs_format(arguments, folder):
    """The last step of a run, as `convert --to=t5x --optimizer_state` writes it."""
    checkpoint = opening.read(arguments["model_dir"])
    step, slots = t5x_states.slots_of_run(checkpoint)
    return t5x.write(
        folder,
        checkpoint.config,
        checkpoint.params,
        step=step,
        slots=slots,
        ids=checkpoint.vocabulary,
    )


@pytest.mark.parametrize("scan_layers", [True, False])
def test_run_that_went_through_t5xs_format_ends_with_the_bits_of_one_that_did_not(
    tmp_path, scan_layers
):
    first = _arguments(tmp_path / "first", scan_layers)
    runs.train(**first)
    step = _in_t5xs_format(first, tmp_path / "t5x")
    assert step.name == "checkpoint_3"
    states = []
    for source in (first["model_dir"], f"t5x:{step}", str(tmp_path / "t5x")):
        following = _arguments(
            tmp_path / str(len(states)),
            scan_layers,
            total_steps=5,
            start_continue_from=source,
            train_data=trainer_cases.Batches(seed=8),
        )
        runs.train(**following)
        states.append(trainer_cases.final_state(following))
        assert states[-1][0] == 5
    for state in states[1:]:
        trainer_cases.assert_same_bits(state, states[0])


@pytest.mark.slow
def test_run_goes_on_from_t5xs_format_in_a_bucket(tmp_path, step, bucket):
    folders.upload(step, f"{bucket}/{step.name}")
    states = []
    for number, source in enumerate((f"t5x:{step}", f"t5x:{bucket}/{step.name}")):
        following = _arguments(tmp_path / str(number), start_continue_from=source)
        runs.train(**following)
        states.append(trainer_cases.final_state(following))
    trainer_cases.assert_same_bits(*states)


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """Step 1 of a run, in T5X's format."""
    folder = tmp_path_factory.mktemp("first")
    arguments = _arguments(folder, total_steps=1, checkpoints_period=1)
    runs.train(**arguments)
    return _in_t5xs_format(arguments, folder / "t5x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"optimizer": algorithms.AdamW(learning_rate=0.1)},
            r"Adafactor.*INITIAL_CHECKPOINT_PATH",
        ),
        ({"d_ff": 192}, r"d_ff: 160 -> 192"),
        ({"total_steps": 1}, r"at step 1, and total_steps=1 .*TRAIN_STEPS"),
    ],
)
def test_run_that_cannot_go_on_says_why(tmp_path, step, changes, said):
    arguments = _arguments(tmp_path, start_continue_from=f"t5x:{step}")
    if "d_ff" in changes:
        model = arguments["objective"].model
        config = dataclasses.replace(model.config, **changes)
        changes = {"objective": denoising.Denoising(t5.T5(config, model.compute))}
    with pytest.raises(ValueError, match=said):
        runs.train(**arguments | changes)


def test_checkpoint_without_moments_is_refused(tmp_path, step):
    checkpoint = opening.read(step)
    bare = t5x.write(
        tmp_path, checkpoint.config, checkpoint.params, optimizer_state=False
    )
    with pytest.raises(ValueError, match="has no optimizer state"):
        runs.train(**_arguments(tmp_path, start_continue_from=f"t5x:{bare}"))


def test_moments_of_scanned_layers_are_refused(tmp_path, step):
    checkpoint = opening.read(step)
    scanned = t5x.write(tmp_path, checkpoint.config, checkpoint.params, scanned=True)
    plan = runs.plan(**_arguments(tmp_path)).abstract
    parts = {name: getattr(plan, name) for name in ("step", "params", "opt_state")}
    with pytest.raises(ValueError, match="scanned layers"):
        t5x_states.load(scanned, parts, None)


def test_source_without_an_optimizer_is_refused(tmp_path):
    arguments = _arguments(tmp_path, start_continue_from="hf:Rostlab/prot_t5_xl_bfd")
    with pytest.raises(
        ValueError, match=r"no optimizer state.*INITIAL_CHECKPOINT_PATH"
    ):
        runs.train(**arguments)


def test_missing_step_is_named(tmp_path, step):
    gone = shutil.copytree(step, tmp_path / "checkpoint_1")
    shutil.rmtree(gone)
    arguments = _arguments(tmp_path, start_continue_from=f"t5x:{gone}")
    with pytest.raises(
        manifests.CheckpointError, match=r"continue_from=.*checkpoint_1"
    ):
        runs.train(**arguments)


def test_run_with_another_optimizer_has_no_moments_for_t5x(tmp_path):
    arguments = trainer_cases.arguments(tmp_path, total_steps=1, eval_data={})
    runs.train(**arguments)
    with pytest.raises(ValueError, match=r"no state of Adafactor.*--optimizer_state"):
        t5x_states.slots_of_run(opening.read(arguments["model_dir"]))


def test_moments_are_read_as_they_were_saved(tmp_path, step):
    """Each v_row and v_col of the file is that of the dimension that T5X factors."""
    plan = runs.plan(**_arguments(tmp_path, scan_layers=False)).abstract
    parts = {name: getattr(plan, name) for name in ("step", "params", "opt_state")}
    state = t5x_states.load(step, parts, None).state
    slots = t5x.read_slots(t5x.open_(step))
    arrays = stored_arrays.by_name(jax.tree.map(np.asarray, state["opt_state"]))
    for name, values in slots.items():
        for slot, value in values.items():
            key = f"param_states/{name}/{slot}"
            np.testing.assert_array_equal(arrays[key], value, err_msg=key)
