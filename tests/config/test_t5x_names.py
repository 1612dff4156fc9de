"""What a user of T5X types works, or is refused with the name that we have for it."""

import pathlib
import re

from absl import flags
import pytest

from prottrans_jax.config import checking, command_flags, mains, reading, t5x_names

LEAF = "sample.gin"


def check(*arguments):
    """Checks the configuration of a command line of T5X's."""
    rewritten = mains.rewrite_gin_args(arguments)
    bindings = [x.removeprefix("--gin_bindings=") for x in rewritten]
    return checking.check([LEAF], ["MODEL_DIR = 'run'", *bindings])


@pytest.mark.parametrize(
    "argument",
    [
        '--gin.MODEL_DIR="/x"',
        "--gin.MODEL_DIR='/x'",
        "--gin.TRAIN_STEPS=7",
        "--gin.BATCH_SIZE = 4",
        "--gin.DROPOUT_RATE=0.1",
        "--gin.MIXTURE_OR_TASK_NAME='sample_iid_denoise'",
        '--gin.TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 64}',
        "--gin.INITIAL_CHECKPOINT_PATH='/x/checkpoint_3'",
        "--gin.train.total_steps=7",
        "--gin.train.eval_period=7",
        "--gin_bindings=trainer.train.seed = 3",
    ],
)
def test_names_that_both_have_work(argument):
    check(argument)


def test_several_files_and_search_paths_work_and_later_files_win(tmp_path):
    (tmp_path / "mine.gin").write_text("TRAIN_STEPS = 3\nBATCH_SIZE = 2\n")
    (tmp_path / "last.gin").write_text("BATCH_SIZE = 4\n")
    config = checking.check(
        [LEAF, "mine.gin", "last.gin"], ["MODEL_DIR = 'run'"], [tmp_path]
    )
    assert (config.macros["TRAIN_STEPS"], config.macros["BATCH_SIZE"]) == (3, 4)


@pytest.mark.parametrize("name", t5x_names.MACROS)
def test_other_macros_are_refused_with_ours(name):
    with pytest.raises(reading.UsageError) as refusal:
        check(f"--gin.{name}=1")
    assert f"It is T5X's. Here: {t5x_names.MACROS[name]}." in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", t5x_names.BINDINGS)
@pytest.mark.parametrize("module", ["utils", "trainer"])
def test_other_bindings_are_refused_with_ours(name, module):
    if name.startswith("train."):
        module = "train_script"
    with pytest.raises(reading.UsageError) as refusal:
        check(f"--gin.train/{module}.{name}=1")
    assert f"{name} is T5X's. Here: {t5x_names.BINDINGS[name]}." in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_short_name_of_the_script_is_refused_with_ours():
    with pytest.raises(reading.UsageError, match="Here: EVAL_BATCHES"):
        check("--gin.train.eval_steps=3")


def test_the_macros_and_parameters_that_are_suggested_exist():
    suggestions = " ".join([*t5x_names.MACROS.values(), *t5x_names.BINDINGS.values()])
    package = reading.package_folder()
    macros = set()
    for path in package.rglob("*.gin"):
        macros |= set(re.findall(r"^([A-Z_]+) =", path.read_text(), re.MULTILINE))
    suggested = set(re.findall(r"\b[A-Z]+_?[A-Z_]+\b", suggestions)) - {"SQ", "IO"}
    assert "EVAL_BATCHES" in suggested and suggested <= macros
    parameters = re.findall(r"\b(?:train/|eval/)?\w+\.[A-Z]\w+\.\w+", suggestions)
    assert "denoising.Denoising.z_loss" in parameters
    for parameter in parameters:
        try:
            check(f"--gin.{parameter}=1")
        except reading.UsageError as error:  # Only for the value.
            assert "has no parameter" not in str(error)
            assert "no file imports" not in str(error)


@pytest.mark.parametrize(
    "argument",
    [
        *(f"--{name}=x" for name in t5x_names.FLAGS if name != "multiprocess_gpu"),
        "--multiprocess_gpu",
        "--nomultiprocess_gpu",
    ],
)
def test_other_flags_are_refused_with_ours_in_one_line(argument, capsys):
    with pytest.raises(SystemExit) as end:
        command_flags.parse(["train", argument], flags.FlagValues())
    assert end.value.code == 2
    name = argument.partition("=")[0].removeprefix("--").removeprefix("no")
    line = capsys.readouterr().err
    assert f"--{name} is T5X's. Here: {t5x_names.FLAGS[name]}." in line
    assert line.count("\n") == 1


def test_the_guide_lists_every_flag_and_macro():
    guide = pathlib.Path(__file__).parents[2] / "docs" / "pretraining.md"
    section = guide.read_text().partition("## Coming from T5X\n")[2]
    for name in (*t5x_names.MACROS, *(f"--{name}" for name in t5x_names.FLAGS)):
        assert f"`{name}" in section, name
