"""What is told of a configuration before anything heavy is imported."""

import os
import subprocess
import sys

import pytest

from prottrans_jax.config import building, checking, places
from prottrans_jax.files import paths


def sample(tmp_path, *bindings):
    run = f"MODEL_DIR = {str(tmp_path / 'run')!r}"
    return checking.check(["sample.gin"], [run, *bindings])


def test_good_places_pass_and_model_dir_is_made(tmp_path):
    (tmp_path / "data").mkdir()
    places.check_training(sample(tmp_path, f"DATA_DIR = {str(tmp_path / 'data')!r}"))
    assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize("corpus", ["fasta", "uniref50"])
def test_corpus_that_is_not_prepared_is_named_with_the_command(
    corpus, tmp_path, monkeypatch
):
    monkeypatch.delenv("PROTTRANS_DATA_DIR", raising=False)
    task = f"MIXTURE_OR_TASK_NAME = '{corpus}_iid_denoise'"
    with pytest.raises(building.UsageError, match="neither data_dir nor"):
        places.check_training(sample(tmp_path, task))
    (tmp_path / "data").mkdir()
    data_dir = f"DATA_DIR = {str(tmp_path / 'data')!r}"
    with pytest.raises(building.UsageError, match=f"corpus '{corpus}' is not") as error:
        places.check_evaluation(sample(tmp_path, task, data_dir))
    assert "prottrans_jax.prepare" in str(error.value)


@pytest.mark.parametrize("folder", ["/proc/run", "/proc/a/run", "x" * 300])
def test_model_dir_that_cannot_be_made_is_refused(folder, tmp_path):
    config = sample(tmp_path, f"MODEL_DIR = {str(tmp_path / folder)!r}")
    said = r"cannot be created|cannot be used: File name too long|not writable"
    with pytest.raises(building.UsageError, match=said):
        places.check_training(config)


@pytest.mark.parametrize("value", ["3", "None", "['sample_iid_denoise']", "True"])
def test_task_that_is_not_a_text_is_refused(value, tmp_path):
    with pytest.raises(building.UsageError, match="expected the name of a task"):
        sample(tmp_path, f"MIXTURE_OR_TASK_NAME = {value}")


@pytest.mark.parametrize(
    "binding",
    [
        "trainer.train.objective = None",
        "trainer.train.partitioner = 'data_parallel'",
        "OPTIMIZER = 3",
        "trainer.train.train_data = ['x']",
        "trainer.train.eval_data = {'validation': 3}",
    ],
)
def test_parts_of_a_run_are_objects(binding, tmp_path):
    with pytest.raises(building.UsageError, match=r"an object|each value an object"):
        sample(tmp_path, binding)


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        (
            "OBJECTIVE = @optimizers.AdamW()",
            r"OBJECTIVE = @optimizers.AdamW\(\): it gives an object of type AdamW; "
            r"expected an object of type Objective, such as @denoising.Denoising\(\)",
        ),
        (
            "OPTIMIZER = @optimizers.AdamW",
            r"OPTIMIZER = @optimizers.AdamW: without \(\) it is the class itself; "
            r"expected .*Optimizer, such as .*@optimizers.AdamW\(\)",
        ),
        ("OPTIMIZER = @optimizers.Optimizer", "such as @optimizers.Adafactor"),
        ("OPTIMIZER = @denoising.Denoising()", "of type Denoising; expected .*Optimi"),
        ("OPTIMIZER = @schedules.InverseSqrt()", "of type InverseSqrt; expected"),
        ("MODEL = @t5.T5Config()", r"expected .* T5, such as @t5.T5\(\) \(for denois"),
        ("t5.T5.config = @t5.T5()", r"type T5; expected .* T5Config, such as @t5.T5Co"),
        ("trainer.train.eval_data = {'a': @t5.T5()}", "type T5; expected a dictionary"),
        ("TRAIN_STEPS = @t5.T5()", "of type T5; expected a whole number"),
        ("schedules.InverseSqrt.peak = @schedules.Constant()", "expected a finite"),
        (
            "optimizers.AdamW.learning_rate = @schedules.InverseSqrt",
            r"without \(\) it is the factory of the function; expected a finite number",
        ),
        ("optimizers.AdamW.learning_rate = @optimizers.Lamb()", "type Lamb; expected"),
    ],
)
def test_component_of_the_wrong_kind_is_named_with_what_is_needed(
    binding, said, tmp_path
):
    with pytest.raises(building.UsageError, match=said) as error:
        sample(tmp_path, binding)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "binding",
    [
        "trainer.train.train_data = @other/loader.RowLoader()",
        "optimizers.AdamW.learning_rate = @schedules.Constant()",
        "OPTIMIZER = @optimizers.Lamb()",
    ],
)
def test_component_of_the_right_kind_passes(binding, tmp_path):
    more = (
        "other/loader.RowLoader.task = 'sample_iid_denoise'",
        "other/loader.RowLoader.batch_size = 2",
        "schedules.Constant.learning_rate = 0.1",
        "optimizers.Lamb.learning_rate = 0.1",
    )
    sample(tmp_path, binding, *more)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1e300", r"less than 2\^63"),
        ("9223372036854775808", r"less than 2\^63"),
        ("2.5", "expected a whole number"),
    ],
)
def test_number_of_steps_that_is_no_whole_number_is_refused(value, said, tmp_path):
    with pytest.raises(building.UsageError, match=f"TRAIN_STEPS = .*{said}"):
        sample(tmp_path, f"TRAIN_STEPS = {value}")


@pytest.mark.parametrize("value", ["'float31'", "16"])
def test_value_that_names_no_dtype_is_refused(value, tmp_path):
    with pytest.raises(building.UsageError, match="expected the name of a dtype"):
        sample(tmp_path, f"trainer.train.save_dtype = {value}")


@pytest.mark.parametrize("macro", ["INITIAL_CHECKPOINT_PATH", "CONTINUE_FROM"])
def test_every_place_that_is_not_there_is_named_at_once(macro, tmp_path):
    (tmp_path / "run").write_text("a file")
    config = sample(
        tmp_path,
        "DATA_DIR = '/no/such/data'",
        f"{macro} = 't5x:/no/such/start'",
    )
    with pytest.raises(building.UsageError) as error:
        places.check_training(config)
    assert (tmp_path / "run").is_file()
    model_dir, data_dir, start = str(error.value).splitlines()
    assert model_dir.startswith("MODEL_DIR=") and "is not a folder" in model_dir
    assert data_dir.startswith("DATA_DIR='/no/such/data': there is no such folder")
    assert start.startswith(f"{macro}='t5x:/no/such/start'")


def test_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(building.UsageError, match="is not writable"):
        places.check_training(sample(tmp_path))


def test_bucket_after_a_kind_of_source_must_hold_the_checkpoint(tmp_path, bucket):
    config = sample(tmp_path, f"INITIAL_CHECKPOINT_PATH = 'hf:{bucket}/model'")
    with pytest.raises(building.UsageError, match=f"there is no {bucket}/model"):
        places.check_training(config)
    (paths.place(bucket, "bucket") / "model" / "config.json").write_text("{}")
    places.check_training(config)


def test_repository_of_the_hub_is_no_folder_to_look_for(tmp_path):
    places.check_training(sample(tmp_path, "INITIAL_CHECKPOINT_PATH = 'hf:prot_bert'"))


def test_checkpoint_to_start_from_may_be_gone_once_the_run_has_its_own(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    places.check_training(sample(tmp_path, "INITIAL_CHECKPOINT_PATH = '/gone'"))


def test_evaluation_wants_a_run_that_exists(tmp_path):
    with pytest.raises(building.UsageError, match="there is no such folder"):
        places.check_evaluation(sample(tmp_path))


WITHOUT_HEAVY_IMPORTS = """
import atexit, sys
from prottrans_jax import {main} as main
from prottrans_jax.config import mains
def check():
    bad = sorted({{"jax", "tensorflow", "seqio", "flax", "orbax"}} & set(sys.modules))
    print("imported:", *bad)
atexit.register(check)
mains.run(main.main)
"""


@pytest.mark.parametrize("main", ["train", "evaluate"])
@pytest.mark.parametrize(
    "mistake",
    [
        "--gin.TRAIN_STEP=3",
        "--gin.PACK='yes'",
        "--gin.MIXTURE_OR_TASK_NAME='sample_iid_denoise_'",
        "--data_dir=/no/such/data",
        "--gin_file=sampel.gin",
    ],
)
def test_mistake_is_told_before_heavy_imports(main, mistake, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT_HEAVY_IMPORTS.format(main=main)),
            *("--gin_file=sample.gin", f"--model_dir={tmp_path}", mistake),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == "imported:\n"
    assert "Traceback" not in done.stderr


MISSING = """
import sys
from prottrans_jax.config import mains
from prottrans_jax.distributed import barriers, start
from prottrans_jax import train
def initialize(*arguments, **options):
    raise barriers.ProcessesMissing("data: after 9 s process 1 of 2 is missing.")
start.initialize = initialize
mains.run(train.main)
"""


def test_process_that_does_not_come_ends_training_with_one_line(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            MISSING,
            "--gin_file=sample.gin",
            f"--model_dir={tmp_path}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == (
        "error: data: after 9 s process 1 of 2 is missing. Start the same command on "
        "all hosts."
    )
    assert "Traceback" not in done.stderr


def test_files_of_a_bucket_are_read_and_its_places_pass(bucket):
    root = paths.place(bucket, "--gin_file")
    (root / "own.gin").write_text('include "sample.gin"\ninclude "more.gin"\n')
    (root / "more.gin").write_text("LOG_PERIOD = 7\n")
    (root / "start" / "x").write_text("")
    config = checking.check(
        [f"{bucket}/own.gin"],
        [
            f"MODEL_DIR = '{bucket}/run'",
            f"INITIAL_CHECKPOINT_PATH = '{bucket}/start'",
        ],
    )
    assert config.macros["LOG_PERIOD"] == 7
    places.check_training(config)
    with pytest.raises(building.UsageError, match="there is no such folder"):
        places.check_evaluation(config)
    with pytest.raises(building.UsageError, match=f"No gin file {bucket}/none"):
        checking.check([f"{bucket}/none.gin"], [])


def test_missing_places_in_a_bucket_are_named(bucket, tmp_path):
    for setting in ("INITIAL_CHECKPOINT_PATH", "CONTINUE_FROM"):
        with pytest.raises(building.UsageError, match=f"{setting}='{bucket}/none'"):
            places.check_training(sample(tmp_path, f"{setting} = '{bucket}/none'"))
