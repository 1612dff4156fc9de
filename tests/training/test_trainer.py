"""The training loop on a model of a few thousand parameters and made-up batches."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from cases import runs, trainer_cases
from prottrans_jax import partitioning
from prottrans_jax.checkpoints import manifests
from prottrans_jax.distributed import stopping, watchdog
from prottrans_jax.models import t5
from prottrans_jax.objectives import denoising
from prottrans_jax.optimizers import algorithms
from prottrans_jax.training import event_files, logbook, metrics


def test_run_in_two_parts_ends_with_the_bits_of_an_unbroken_one(tmp_path, monkeypatch):
    whole = trainer_cases.arguments(tmp_path / "whole")
    runs.train(**whole)
    parts = trainer_cases.arguments(tmp_path / "parts")
    # In the middle of a log window (3) and of an evaluation period (4).
    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopSignal, "should_stop", lambda _, step: step == 5)
        assert runs.train(**parts).step == 5
    assert [line["step"] for line in trainer_cases.log(parts)] == [3, 4]
    runs.train(**parts)
    assert trainer_cases.final_state(whole)[0] == 6
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(whole), trainer_cases.final_state(parts)
    )
    assert trainer_cases.log(parts) == trainer_cases.log(whole)


def _run_that_ends_before(step, arguments):
    broken = arguments | {"train_data": trainer_cases.Batches(broken_at=step - 1)}
    with pytest.raises(trainer_cases.EndOfRunError):
        runs.train(**broken)


def _with_tensorboard(arguments):
    directory = pathlib.Path(arguments["model_dir"]) / "tensorboard"
    return arguments | {"writers": lambda: (event_files.EventWriter(directory),)}


def _tensorboard(arguments):
    """(tag, step) to value, without times; a pair that is there twice is an error."""
    directory = arguments["model_dir"] + "/tensorboard"
    reader = event_accumulator.EventAccumulator(
        directory,
        size_guidance={event_accumulator.TENSORS: 0},
        purge_orphaned_data=False,
    )
    values = {}
    for tag in reader.Reload().Tags()["tensors"]:
        for event in reader.Tensors(tag):
            assert (tag, event.step) not in values
            values[tag, event.step] = event.tensor_proto.float_val[0]
    return {k: v for k, v in values.items() if not k[0].startswith("timing")}


@pytest.mark.parametrize("damaged", [False, True])
def test_broken_run_leaves_every_step_once_in_all_logs(tmp_path, damaged):
    changes = {"logs_period": 1, "checkpoints_period": 3, "total_steps": 9}
    whole = _with_tensorboard(trainer_cases.arguments(tmp_path / "whole", **changes))
    runs.train(**whole)
    parts = _with_tensorboard(trainer_cases.arguments(tmp_path / "parts", **changes))
    _run_that_ends_before(9, parts)
    assert max(line["step"] for line in trainer_cases.log(parts)) > 6  # Saved up to 6.
    if damaged:
        trainer_cases.damage_checkpoint(parts, 6)
    runs.train(**parts)
    assert [line["step"] for line in trainer_cases.log(parts)] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
    ]
    assert trainer_cases.log(parts) == trainer_cases.log(whole)
    assert _tensorboard(parts) == _tensorboard(whole)


def test_logs_hold_the_second_pass_with_changed_settings_only(tmp_path):
    arguments = _with_tensorboard(
        trainer_cases.arguments(tmp_path, logs_period=1, checkpoints_period=3)
    )
    _run_that_ends_before(6, arguments)
    changed = algorithms.AdamW(learning_rate=0.5)
    runs.train(
        **arguments | {"optimizer": changed, "start_accept_config_changes": True}
    )
    rates = {
        step: value
        for (tag, step), value in _tensorboard(arguments).items()
        if tag == "train/learning_rate"
    }
    assert rates == pytest.approx({1: 0.01, 2: 0.01, 3: 0.01, 4: 0.5, 5: 0.5, 6: 0.5})


def test_evaluation_cut_off_before_its_checkpoint_is_logged_once(tmp_path, monkeypatch):
    arguments = _with_tensorboard(trainer_cases.arguments(tmp_path, total_steps=5))
    with monkeypatch.context() as patch:  # Saves step 4 before its evaluation.
        patch.setattr(stopping.StopSignal, "should_stop", lambda _, step: step == 4)
        runs.train(**arguments)
    # Evaluates step 4, then ends before the next checkpoint.
    _run_that_ends_before(5, arguments)
    runs.train(**arguments)
    assert [line["step"] for line in trainer_cases.log(arguments)] == [3, 4, 5]
    assert ("validation/loss", 4) in _tensorboard(arguments)


def test_lost_checkpoints_leave_every_step_once_in_the_log(tmp_path, caplog):
    arguments = trainer_cases.arguments(tmp_path, checkpoints_keep_period=100)
    runs.train(**arguments)
    before = trainer_cases.log(arguments)
    for step in ("2", "4", "6"):
        shutil.rmtree(pathlib.Path(arguments["model_dir"]) / "checkpoints" / step)
    runs.train(**arguments)
    assert (
        "reaches step 6 and the newest checkpoint is of step 0: 6 steps" in caplog.text
    )
    assert [line["step"] for line in trainer_cases.log(arguments)] == [3, 4, 6]
    assert trainer_cases.log(arguments) == before


def test_damaged_log_does_not_stop_a_sound_run(tmp_path, caplog):
    arguments = trainer_cases.arguments(tmp_path, total_steps=3)
    runs.train(**arguments)
    path = pathlib.Path(_path(arguments))
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    runs.train(**arguments | {"total_steps": 6})
    assert [line["step"] for line in trainer_cases.log(arguments)] == [4, 6]
    assert path.with_name("metrics.jsonl.damaged-1").exists()
    assert "Steps missing from the log: train 3; validation 3." in caplog.text


def test_run_without_a_sound_later_checkpoint_does_not_start_over(tmp_path, caplog):
    arguments = trainer_cases.arguments(
        tmp_path, checkpoints_keep_period=100, eval_data={}
    )
    runs.train(**arguments)
    before = trainer_cases.log(arguments)
    for step in (2, 4, 6):
        trainer_cases.damage_checkpoint(arguments, step)
    with pytest.raises(
        manifests.CheckpointError,
        match=r"steps 2, 4, 6 are damaged.*6 steps would be lost.*"
        r"run_settings\.Start\.accept_lost_steps=True",
    ):
        runs.train(**arguments)
    assert trainer_cases.log(arguments) == before
    runs.train(**arguments | {"start_accept_lost_steps": True})
    assert "Using step 0 instead, 6 steps earlier" in caplog.text
    assert trainer_cases.log(arguments) == before
    assert trainer_cases.final_state(arguments)[0] == 6


def test_fall_back_of_two_checkpoints_says_how_many_steps_are_lost(tmp_path, caplog):
    arguments = trainer_cases.arguments(tmp_path, eval_data={})
    runs.train(**arguments)
    trainer_cases.damage_checkpoint(arguments, 4)
    trainer_cases.damage_checkpoint(arguments, 6)
    assert runs.train(**arguments).step == 6
    lines = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
    assert lines == ["Using step 2 instead, 4 steps earlier."]


@pytest.mark.parametrize("evaluated", [True, False])
def test_signal_at_the_end_counts_only_if_something_is_left_to_do(
    tmp_path, monkeypatch, evaluated
):
    arguments = trainer_cases.arguments(tmp_path, total_steps=4)

    class Signalled(trainer_cases.Batches):
        def batch(self, index, rows=slice(None)):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(index, rows)

    if evaluated:  # In the last evaluation, after which step 4 is saved.
        data = {"validation": Signalled(seed=1, num_batches=2)}
        summary = runs.train(**arguments | {"eval_data": data})
    else:  # Before it: step 4 is saved, and evaluated by the next start.
        monkeypatch.setattr(
            stopping.StopSignal,
            "should_stop",
            lambda stop, step: step == 4 and not os.kill(os.getpid(), signal.SIGTERM),
        )
        summary = runs.train(**arguments)
    assert (summary.step, trainer_cases.final_state(arguments)[0]) == (4, 4)
    assert summary.exit_code == (0 if evaluated else 143)
    assert bool(summary.evaluation) == evaluated
    assert ("validation/loss" in trainer_cases.log(arguments)[-1]) == evaluated


def test_step_skipped_again_after_a_kill_is_dumped_once(tmp_path):
    arguments = trainer_cases.arguments(
        tmp_path, nonfinite_policy="skip", eval_data={}, checkpoints_period=6
    )
    for broken_at in (4, None):
        data = trainer_cases.Batches(poison={2}, broken_at=broken_at)
        with contextlib.suppress(trainer_cases.EndOfRunError):
            runs.train(**arguments | {"train_data": data})
    lines = open(arguments["model_dir"] + "/nonfinite.jsonl").read().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3]


def test_rates_count_what_this_process_did(tmp_path, monkeypatch):
    arguments = trainer_cases.arguments(tmp_path) | {"eval_data": {}}
    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopSignal, "should_stop", lambda _, step: step == 5)
        runs.train(**arguments)
    asked = []
    scalars = logbook.Rates.scalars
    monkeypatch.setattr(
        logbook.Rates,
        "scalars",
        lambda self, step, residues: (
            asked.append((self._step, step, residues)) or scalars(self, step, residues)
        ),
    )
    runs.train(**arguments)
    batch = arguments["train_data"].batch(5)
    segments = batch["encoder_segment_ids"]
    residues = (segments > 0).sum() - segments.max(axis=1).sum()
    assert asked == [(5, 6, residues)]  # Step 4 and 5 were another process's.


def test_mfu_counts_the_waiting_for_data_but_no_evaluation(monkeypatch):
    class Watch(metrics.Stopwatch):
        seconds, causes = 0.0, {"compute": 0.0}

        def wall(self):
            return self.seconds

        def split(self):
            return dict(self.causes)

    watch = Watch()
    monkeypatch.setattr(logbook.hardware, "peak_flops", lambda device: 100.0)
    mesh = partitioning.Partitioner(num_devices=2).mesh
    rates = logbook.Rates(watch, lambda: 30.0, mesh)
    watch.seconds = 9.0
    watch.causes = {"compute": 2.0, "data": 4.0, "evaluate": 2.5, "checkpoint": 0.5}
    scalars = rates.scalars(step=3, residues=18.0)
    # 3 steps of 30 FLOP in 9 - 2.5 - 0.5 s, of 2 devices' 100 FLOP/s.
    assert scalars["timing/mfu"] == pytest.approx(3 * 30 / (6 * 200))
    assert scalars["timing/residues_per_second"] == pytest.approx(18 / 6)


@dataclasses.dataclass(frozen=True)
class Rising:
    """Learning rates 0, 0.25, 0.5 ..."""

    def __call__(self, step):
        return step * 0.25


def test_logged_learning_rate_is_the_one_used_after_skipped_steps(tmp_path):
    rates = {}
    arguments = trainer_cases.arguments(
        tmp_path,
        train_data=trainer_cases.Batches(poison={1}),
        optimizer=algorithms.AdamW(learning_rate=Rising()),
    )
    runs.train(
        **arguments
        | {
            "nonfinite_policy": "skip",
            "logs_period": 1,
            "eval_data": {},
            "total_steps": 4,
        }
    )
    for line in trainer_cases.log(arguments):
        rates[line["step"]] = line["train/learning_rate"]
    # The second step is not finite, so the optimizer counts 0, 1, 1, 2.
    assert rates == {1: 0.0, 2: 0.25, 3: 0.25, 4: 0.5}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("num_microbatches", "num_microbatches"),
        ("evaluation_period", r"Evaluation\.period"),
        ("checkpoints_period", r"Checkpoints\.period"),
        ("logs_period", r"Logs\.period"),
    ],
)
def test_period_of_0_is_refused(tmp_path, name, said):
    with pytest.raises(ValueError, match=f"{said}=0: must be at least 1"):
        runs.train(**(trainer_cases.arguments(tmp_path) | {name: 0}))


@pytest.mark.parametrize("data", ["train_data", "eval_data"])
def test_vocabulary_that_the_model_does_not_cover_is_refused(tmp_path, data):
    arguments = trainer_cases.arguments(tmp_path)
    loader = trainer_cases.Batches(num_batches=2)
    loader.vocab_size = 131
    arguments[data] = {"validation": loader} if data == "eval_data" else loader
    with pytest.raises(ValueError, match=r"T5Config\.vocab_size=128 .* 131 ids"):
        runs.train(**arguments)


@pytest.mark.parametrize("steps", [(2, 1), (3, 3), (-1, 2)])
def test_profile_without_a_step_is_refused(tmp_path, steps):
    with pytest.raises(ValueError, match=r"profile_steps=\[.*first step at least"):
        runs.train(**trainer_cases.arguments(tmp_path, logs_profile_steps=steps))


def test_more_steps_than_can_be_counted_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"3,000,000,000: .*2,147,483,647"):
        runs.train(**trainer_cases.arguments(tmp_path, total_steps=3_000_000_000))


def test_another_start_is_another_run(tmp_path):
    arguments = trainer_cases.arguments(tmp_path)
    runs.train(**arguments)
    with pytest.raises(ValueError, match="init_from: none -> /some/where"):
        runs.train(**arguments, start_init_from="/some/where")


def test_start_may_be_spelled_otherwise(tmp_path, monkeypatch):
    first = trainer_cases.arguments(tmp_path / "first", total_steps=1)
    runs.train(**first)
    monkeypatch.chdir(tmp_path)
    start = first["model_dir"]
    (tmp_path / "link").symlink_to(start)
    second = trainer_cases.arguments(tmp_path / "second", total_steps=1, seed=9)
    for spelled in (start, "first/run/", "first/../link"):
        assert runs.train(**second, start_init_from=spelled).step == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert runs.train(**second, start_init_from="../first/run").step == 1


def test_another_seed_cannot_be_accepted(tmp_path):
    arguments = trainer_cases.arguments(tmp_path)
    runs.train(**arguments)
    with pytest.raises(ValueError, match=r"Choose another model_dir\.$"):
        runs.train(**arguments | {"seed": 6, "start_accept_config_changes": True})


def test_long_evaluation_is_progress_and_only_the_first_one_may_compile(
    tmp_path, monkeypatch
):
    beats = []
    beat = watchdog.Watchdog.beat
    monkeypatch.setattr(
        watchdog.Watchdog,
        "beat",
        lambda self, doing, limit_s=None, **kind: (
            beats.append((doing, limit_s)) or beat(self, doing, limit_s, **kind)
        ),
    )
    runs.train(**trainer_cases.arguments(tmp_path, limits_startup_s=1234.0))
    # One as it begins and one for each of its two batches, at steps 4 and 6.
    limits = {
        step: [limit for doing, limit in beats if doing == f"evaluation at step {step}"]
        for step in (4, 6)
    }
    assert limits == {4: [1234.0, None, None], 6: [None, None, None]}


def _path(arguments):
    return arguments["model_dir"] + "/metrics.jsonl"


def test_finished_run_is_evaluated_and_not_trained_again(tmp_path):
    arguments = trainer_cases.arguments(tmp_path)
    runs.train(**arguments)
    before = trainer_cases.final_state(arguments)
    summary = runs.train(**arguments)
    assert summary.step == 6
    assert set(summary.evaluation) == {"validation"}
    trainer_cases.assert_same_bits(before, trainer_cases.final_state(arguments))
    assert [line["step"] for line in trainer_cases.log(arguments)] == [
        3,
        4,
        6,
    ]  # As before.


def test_another_configuration_in_the_same_directory_is_refused(tmp_path):
    runs.train(**trainer_cases.arguments(tmp_path, total_steps=2))
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.01 -> 0.5"):
        runs.train(
            **trainer_cases.arguments(
                tmp_path, optimizer=algorithms.AdamW(learning_rate=0.5)
            )
        )


def test_microbatches_take_the_step_of_the_whole_batch(tmp_path):
    # Rows have different lengths, so a mean of means would differ. So large an eps
    # makes the update a multiple of the gradient, as Adam's own is not.
    optimizer = algorithms.AdamW(learning_rate=1.0, eps=10.0, weight_decay=0.0)
    finals = []
    for count in (1, 4):
        arguments = trainer_cases.arguments(
            tmp_path / str(count),
            num_microbatches=count,
            total_steps=2,
            dropout_rate=0,
            optimizer=optimizer,
        )
        runs.train(**arguments)
        finals.append(trainer_cases.final_state(arguments)[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        finals[0].params,
        finals[1].params,
    )
    moments = [final.opt_state[0].mu for final in finals]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(moments[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * largest), *moments
    )


def test_stop_policy_names_the_step_and_its_records(tmp_path):
    arguments = trainer_cases.arguments(
        tmp_path, train_data=trainer_cases.Batches(poison={2})
    )
    with pytest.raises(logbook.NonFiniteError, match="Step 3") as error:
        runs.train(**arguments)
    # A restart is bit-identical: it would end here again.
    assert "The same command will fail at the same step again" in str(error.value)
    assert "run_settings.NonFinite.policy = 'skip'" in str(error.value)
    dump = json.loads(open(arguments["model_dir"] + "/nonfinite.jsonl").read())
    assert (dump["step"], dump["record_ids"]) == (3, ["P2"])
    assert trainer_cases.final_state(arguments)[0] == 2


def test_skipped_step_leaves_the_state_bit_equal(tmp_path):
    poisoned = trainer_cases.arguments(
        tmp_path / "a",
        train_data=trainer_cases.Batches(poison={2}),
        nonfinite_policy="skip",
    )
    runs.train(**(poisoned | {"total_steps": 3}))
    step, after = trainer_cases.final_state(poisoned)
    clean = trainer_cases.arguments(tmp_path / "b", total_steps=2)
    runs.train(**clean)
    _, before = trainer_cases.final_state(clean)
    assert step == 3
    trainer_cases.assert_same_bits(before.params, after.params)
    trainer_cases.assert_same_bits(before.opt_state, after.opt_state)
    # The log says so.
    assert trainer_cases.log(poisoned)[0]["train/skipped_steps"] == 1


def test_skip_policy_gives_up_when_nothing_is_finite_any_more(tmp_path):
    arguments = trainer_cases.arguments(
        tmp_path,
        train_data=trainer_cases.Batches(poison=set(range(1, 9))),
        nonfinite_policy="skip",
        nonfinite_max_skipped_steps=2,
    )
    with pytest.raises(logbook.NonFiniteError, match="Step 4"):
        runs.train(**arguments)


def _losses_of_20_steps(tmp_path, partitioner):
    arguments = trainer_cases.arguments(
        tmp_path,
        dropout_rate=0,
        logs_period=1,
        total_steps=20,
        eval_data=None,
        checkpoints_period=20,
        partitioner=partitioner,
    )
    runs.train(**arguments)
    return [line["train/loss"] for line in trainer_cases.log(arguments)]


@pytest.fixture(scope="module")
def losses_of_one_device(tmp_path_factory):
    partitioner = partitioning.Partitioner(num_devices=1)
    return _losses_of_20_steps(tmp_path_factory.mktemp("one"), partitioner)


@pytest.mark.parametrize(
    ("scheme", "data", "model"),
    [
        ("data_parallel", 8, 1),
        ("tensor_parallel", 2, 4),
        ("fully_sharded", 8, 1),
        ("2d", 4, 2),
        ("2d_sequence", 2, 4),
    ],
)
def test_every_partitioning_gives_the_losses_of_one_device(
    tmp_path, losses_of_one_device, scheme, data, model
):
    partitioner = partitioning.Partitioner(scheme=scheme, data=data, model=model)
    losses = _losses_of_20_steps(tmp_path, partitioner)
    assert len(losses) == 20
    np.testing.assert_allclose(losses, losses_of_one_device, rtol=1e-5)


def test_evaluation_is_the_mean_over_all_targets_of_the_split(tmp_path):
    arguments = trainer_cases.arguments(tmp_path, total_steps=2)
    scalars = runs.train(**arguments).evaluation["validation"]
    params = trainer_cases.final_state(arguments)[1].params
    model, data = arguments["objective"].model, arguments["eval_data"]["validation"]
    total = weight = 0.0
    for index in range(2):
        batch = data.batch(index)
        arrays = jax.device_put(batch)
        logits = np.asarray(
            model.apply(
                {"params": params},
                arrays["encoder_input_tokens"],
                arrays["decoder_input_tokens"],
                encoder_segment_ids=arrays["encoder_segment_ids"],
                decoder_segment_ids=arrays["decoder_segment_ids"],
                deterministic=True,
            ),
            np.float64,
        )
        log_z = np.log(np.exp(logits).sum(-1))
        picked = np.take_along_axis(
            logits, batch["decoder_target_tokens"][..., None], -1
        )[..., 0]
        total += ((log_z - picked) * batch["decoder_loss_weights"]).sum()
        weight += batch["decoder_loss_weights"].sum()
    assert scalars["loss"] == pytest.approx(total / weight, rel=1e-6)
    assert scalars["unigram_entropy"] == 2.5


def test_microbatches_must_divide_the_batch(tmp_path):
    with pytest.raises(ValueError, match="num_microbatches=3"):
        runs.train(**trainer_cases.arguments(tmp_path, num_microbatches=3))


def test_another_model_in_the_same_directory_is_named_by_its_settings(tmp_path):
    arguments = trainer_cases.arguments(tmp_path, total_steps=1)
    runs.train(**arguments)
    wider = t5.T5(dataclasses.replace(arguments["objective"].model.config, d_ff=40))
    with pytest.raises(ValueError, match=r"objective.model.config.d_ff: 24 -> 40"):
        runs.train(**(arguments | {"objective": denoising.Denoising(wider)}))


def _computed_with(arguments, **settings):
    model = arguments["objective"].model
    model = model.clone(compute=dataclasses.replace(model.compute, **settings))
    return arguments | {"objective": denoising.Denoising(model)}


def test_run_resumes_with_another_type_and_rematerialisation(tmp_path):
    arguments = trainer_cases.arguments(tmp_path)
    runs.train(**(arguments | {"total_steps": 2}))
    settings = {"dtype": "bfloat16", "remat_policy": "full"}
    assert runs.train(**_computed_with(arguments, **settings)).step == 6


def test_resuming_with_layers_stacked_otherwise_names_the_setting(tmp_path):
    arguments = trainer_cases.arguments(tmp_path, total_steps=1)
    runs.train(**arguments)
    with pytest.raises(
        ValueError, match=r"set ComputeConfig\.scan_layers as in the run"
    ):
        runs.train(**_computed_with(arguments, scan_layers=False))


def test_function_in_the_configuration_of_a_run_is_refused_with_its_place(tmp_path):
    optimizer = algorithms.AdamW(learning_rate=lambda step: step * 0.25)
    with pytest.raises(ValueError, match=r"^optimizer\.learning_rate=<function"):
        runs.train(**trainer_cases.arguments(tmp_path, optimizer=optimizer))


def test_run_starts_from_the_parameters_of_another(tmp_path):
    first = trainer_cases.arguments(tmp_path / "first", total_steps=2)
    runs.train(**first)
    second = trainer_cases.arguments(
        tmp_path / "second", total_steps=1, start_init_from=first["model_dir"], seed=9
    )
    runs.train(**(second | {"optimizer": algorithms.AdamW(learning_rate=0.0)}))
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(first)[1].params,
        trainer_cases.final_state(second)[1].params,
    )
