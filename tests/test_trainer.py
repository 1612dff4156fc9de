"""The training loop on a model of a few thousand parameters and made-up batches."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from prottrans_jax import logbook, multihost, optimizers, partitioning, trainer
from prottrans_jax.models import t5
from prottrans_jax.objectives import denoising

LENGTH, BATCH = 8, 16


class Batches:
    """A loader of random rows: a pure function of (seed, index)."""

    unigram_entropy = 2.5
    batch_size = BATCH

    def __init__(self, seed=0, num_batches=None, poison=()):
        self.num_batches = num_batches
        self._seed = seed
        self._poison = poison

    def batch(self, index, rows=slice(None)):
        rng = np.random.default_rng((self._seed, index))
        tokens = rng.integers(3, 23, (BATCH, LENGTH), np.int32)
        lengths = rng.integers(3, LENGTH + 1, (BATCH, 1))
        real = np.arange(LENGTH) < lengths
        corrupted = (rng.random((BATCH, LENGTH)) < 0.3) & real
        features = {
            "encoder_input_tokens": np.where(corrupted, 127, tokens) * real,
            "decoder_target_tokens": tokens * real,
            "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1] * real,
            "decoder_loss_weights": real.astype(np.float32),
            "encoder_segment_ids": real.astype(np.int32),
            "decoder_segment_ids": real.astype(np.int32),
            "decoder_corrupted": corrupted.astype(np.int32),
        }
        if index in self._poison:
            features["decoder_loss_weights"] = features["decoder_loss_weights"] * np.inf
        return {name: value[rows] for name, value in features.items()}

    def state(self, index):
        return {"next": index, "seed": self._seed}

    def restore(self, state):
        return state["next"]

    def example_ids(self, index):
        return [f"P{index}"]


def _arguments(tmp_path, **changes):
    config = t5.T5Config(
        vocab_size=128,
        num_layers=2,
        num_decoder_layers=1,
        num_heads=4,
        head_dim=6,
        d_model=16,
        d_ff=24,
        dropout_rate=changes.pop("dropout_rate", 0.1),
    )
    arguments = dict(
        model_dir=str(tmp_path / "run"),
        objective=denoising.Denoising(t5.T5(config)),
        train_data=Batches(),
        eval_data={"validation": Batches(seed=1, num_batches=2)},
        optimizer=optimizers.AdamW(learning_rate=1e-2),
        partitioner=partitioning.Partitioner(num_devices=1),
        total_steps=6,
        eval_period=4,
        checkpoint_period=2,
        log_period=3,
        seed=5,
    )
    return arguments | changes


def _final_state(arguments):
    from prottrans_jax import checkpoints

    saver = checkpoints.Checkpointer(
        arguments["model_dir"] + "/checkpoints", read_only=True
    )
    plan = trainer.layout(
        arguments["objective"],
        arguments["optimizer"],
        arguments["partitioner"],
        arguments["train_data"],
    )
    restored = saver.restore(plan.abstract)
    return restored.step, jax.tree.map(np.asarray, restored.state)


def _log(arguments):
    lines = open(arguments["model_dir"] + "/metrics.jsonl").read().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("timing")}
        for line in lines
    ]


def _assert_same_bits(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_run_in_two_parts_ends_with_the_bits_of_an_unbroken_one(tmp_path, monkeypatch):
    whole = _arguments(tmp_path / "whole")
    trainer.train(**whole)
    parts = _arguments(tmp_path / "parts")
    # In the middle of a log window (3) and of an evaluation period (4).
    with monkeypatch.context() as patch:
        patch.setattr(multihost.StopSignal, "should_stop", lambda _, step: step == 5)
        assert trainer.train(**parts).step == 5
    assert [line["step"] for line in _log(parts)] == [3, 4]
    trainer.train(**parts)
    assert _final_state(whole)[0] == 6
    _assert_same_bits(_final_state(whole), _final_state(parts))
    assert _log(parts) == _log(whole)


def test_rates_count_what_this_process_did(tmp_path, monkeypatch):
    arguments = _arguments(tmp_path) | {"eval_data": {}}
    with monkeypatch.context() as patch:
        patch.setattr(multihost.StopSignal, "should_stop", lambda _, step: step == 5)
        trainer.train(**arguments)
    asked = []
    scalars = logbook.Rates.scalars
    monkeypatch.setattr(
        logbook.Rates,
        "scalars",
        lambda self, step, residues: (
            asked.append((self._step, step, residues)) or scalars(self, step, residues)
        ),
    )
    trainer.train(**arguments)
    batch = arguments["train_data"].batch(5)
    segments = batch["encoder_segment_ids"]
    residues = (segments > 0).sum() - segments.max(axis=1).sum()
    assert asked == [(5, 6, residues)]  # Step 4 and 5 were another process's.


def test_mfu_counts_the_waiting_for_data_but_no_evaluation(monkeypatch):
    class Watch:
        seconds, causes = 0.0, {"compute": 0.0}

        def wall(self):
            return self.seconds

        def split(self):
            return dict(self.causes)

    watch = Watch()
    monkeypatch.setattr(logbook.hardware, "peak_flops", lambda device: 100.0)
    mesh = partitioning.Partitioner(num_devices=2).mesh
    rates = logbook.Rates(watch, 30.0, mesh)
    watch.seconds = 9.0
    watch.causes = {"compute": 2.0, "data": 4.0, "evaluate": 2.5, "checkpoint": 0.5}
    scalars = rates.scalars(step=3, residues=18.0)
    # 3 steps of 30 FLOP in 9 - 2.5 - 0.5 s, of 2 devices' 100 FLOP/s.
    assert scalars["timing/mfu"] == pytest.approx(3 * 30 / (6 * 200))
    assert scalars["timing/residues_per_second"] == pytest.approx(18 / 6)


def test_logged_learning_rate_is_the_one_used_after_skipped_steps(tmp_path):
    rates = {}
    arguments = _arguments(
        tmp_path,
        train_data=Batches(poison={1}),
        optimizer=optimizers.AdamW(learning_rate=lambda step: step * 0.25),
    )
    trainer.train(
        **arguments
        | {"on_nonfinite": "skip", "log_period": 1, "eval_data": {}, "total_steps": 4}
    )
    for line in _log(arguments):
        rates[line["step"]] = line["train/learning_rate"]
    # The second step is not finite, so the optimizer counts 0, 1, 1, 2.
    assert rates == {1: 0.0, 2: 0.25, 3: 0.25, 4: 0.5}


@pytest.mark.parametrize(
    "name", ["num_microbatches", "eval_period", "checkpoint_period", "log_period"]
)
def test_period_of_0_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}=0: must be at least 1"):
        trainer.train(**(_arguments(tmp_path) | {name: 0}))


def test_another_start_is_another_run(tmp_path):
    arguments = _arguments(tmp_path)
    trainer.train(**arguments)
    with pytest.raises(ValueError, match="init_from: None -> '/some/where'"):
        trainer.train(**arguments, init_from="/some/where")


def test_another_seed_cannot_be_accepted(tmp_path):
    arguments = _arguments(tmp_path)
    trainer.train(**arguments)
    with pytest.raises(ValueError, match=r"Choose another model_dir\.$"):
        trainer.train(**arguments | {"seed": 6, "accept_config_changes": True})


def test_long_evaluation_is_progress(tmp_path, monkeypatch):
    beats = []
    beat = multihost.Watchdog.beat
    monkeypatch.setattr(
        multihost.Watchdog,
        "beat",
        lambda self, doing, limit=None: beats.append(doing) or beat(self, doing, limit),
    )
    trainer.train(**_arguments(tmp_path))
    # One as it begins and one for each of its two batches, at steps 4 and 6.
    assert sum(doing.startswith("evaluation at step 4") for doing in beats) == 3
    assert sum(doing.startswith("evaluation at step 6") for doing in beats) == 3


def _path(arguments):
    return arguments["model_dir"] + "/metrics.jsonl"


def test_finished_run_is_evaluated_and_not_trained_again(tmp_path):
    arguments = _arguments(tmp_path)
    trainer.train(**arguments)
    before = _final_state(arguments)
    summary = trainer.train(**arguments)
    assert summary.step == 6
    assert set(summary.evaluation) == {"validation"}
    _assert_same_bits(before, _final_state(arguments))
    assert [line["step"] for line in _log(arguments)] == [3, 4, 6, 6]  # As before.


def test_another_configuration_in_the_same_directory_is_refused(tmp_path):
    trainer.train(**_arguments(tmp_path, total_steps=2))
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.01 -> 0.5"):
        trainer.train(
            **_arguments(tmp_path, optimizer=optimizers.AdamW(learning_rate=0.5))
        )


def test_microbatches_take_the_step_of_the_whole_batch(tmp_path):
    # Rows have different lengths, so a mean of means would differ. So large an eps
    # makes the update a multiple of the gradient, as Adam's own is not.
    optimizer = optimizers.AdamW(learning_rate=1.0, eps=10.0, weight_decay=0.0)
    finals = []
    for count in (1, 4):
        arguments = _arguments(
            tmp_path / str(count),
            num_microbatches=count,
            total_steps=2,
            dropout_rate=0,
            optimizer=optimizer,
        )
        trainer.train(**arguments)
        finals.append(_final_state(arguments)[1])
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
    arguments = _arguments(tmp_path, train_data=Batches(poison={2}))
    with pytest.raises(logbook.NonFiniteError, match="Step 3") as error:
        trainer.train(**arguments)
    # A restart is bit-identical: it would end here again.
    assert "The same command meets the same step again" in str(error.value)
    assert "trainer.train.on_nonfinite = 'skip'" in str(error.value)
    dump = json.loads(open(arguments["model_dir"] + "/nonfinite.jsonl").read())
    assert (dump["step"], dump["record_ids"]) == (3, ["P2"])
    assert _final_state(arguments)[0] == 2


def test_skipped_step_leaves_the_state_bit_equal(tmp_path):
    poisoned = _arguments(
        tmp_path / "a", train_data=Batches(poison={2}), on_nonfinite="skip"
    )
    trainer.train(**(poisoned | {"total_steps": 3}))
    step, after = _final_state(poisoned)
    clean = _arguments(tmp_path / "b", total_steps=2)
    trainer.train(**clean)
    _, before = _final_state(clean)
    assert step == 3
    _assert_same_bits(before.params, after.params)
    _assert_same_bits(before.opt_state, after.opt_state)
    # The log says so.
    assert _log(poisoned)[0]["train/skipped_steps"] == 1


def test_skip_policy_gives_up_when_nothing_is_finite_any_more(tmp_path):
    arguments = _arguments(
        tmp_path,
        train_data=Batches(poison=set(range(1, 9))),
        on_nonfinite="skip",
        max_skipped_steps=2,
    )
    with pytest.raises(logbook.NonFiniteError, match="Step 4"):
        trainer.train(**arguments)


def _losses_of_20_steps(tmp_path, partitioner):
    arguments = _arguments(
        tmp_path,
        dropout_rate=0,
        log_period=1,
        total_steps=20,
        eval_data=None,
        checkpoint_period=20,
        partitioner=partitioner,
    )
    trainer.train(**arguments)
    return [line["train/loss"] for line in _log(arguments)]


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
    arguments = _arguments(tmp_path, total_steps=2)
    scalars = trainer.train(**arguments).evaluation["validation"]
    params = _final_state(arguments)[1].params
    model, data = arguments["objective"].model, arguments["eval_data"]["validation"]
    total = weight = 0.0
    for index in range(2):
        batch = data.batch(index)
        logits = np.asarray(
            model.apply(
                {"params": params},
                batch["encoder_input_tokens"],
                batch["decoder_input_tokens"],
                encoder_segment_ids=batch["encoder_segment_ids"],
                decoder_segment_ids=batch["decoder_segment_ids"],
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
        trainer.train(**_arguments(tmp_path, num_microbatches=3))


def test_another_model_in_the_same_directory_is_named_by_its_settings(tmp_path):
    arguments = _arguments(tmp_path, total_steps=1)
    trainer.train(**arguments)
    wider = t5.T5(dataclasses.replace(arguments["objective"].model.config, d_ff=40))
    with pytest.raises(ValueError, match=r"objective.model.config.d_ff: 24 -> 40"):
        trainer.train(**(arguments | {"objective": denoising.Denoising(wider)}))


def test_run_starts_from_the_parameters_of_another(tmp_path):
    first = _arguments(tmp_path / "first", total_steps=2)
    trainer.train(**first)
    second = _arguments(
        tmp_path / "second", total_steps=1, init_from=first["model_dir"], seed=9
    )
    trainer.train(**(second | {"optimizer": optimizers.AdamW(learning_rate=0.0)}))
    _assert_same_bits(_final_state(first)[1].params, _final_state(second)[1].params)
