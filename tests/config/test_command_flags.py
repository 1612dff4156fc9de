"""Flags of the mains: a mistake is one line with status 2, and no value is lost."""

from absl import app, flags
import pytest

from prottrans_jax.config import command_flags


@pytest.fixture
def values():
    values = flags.FlagValues()
    flags.DEFINE_string("model_dir", None, "", flag_values=values)
    flags.DEFINE_integer("seed", 0, "", flag_values=values)
    flags.DEFINE_bool("tensorboard", True, "", flag_values=values)
    flags.DEFINE_list("modules", [], "", flag_values=values)
    flags.DEFINE_multi_string("input", [], "", flag_values=values)
    return values


def parse(values, *arguments):
    return command_flags.parse(["program", *arguments], values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_dir=a", "--model_dir=b"], "--model_dir=b is the second value"),
        (["--model_dir", "a", "--model_dir", "b"], "the first is a."),
        (["--tensorboard", "--notensorboard"], "--tensorboard=false is the second"),
        (["--modules=a", "--modules=b"], "the first is ['a']."),
        (["--seed=1", "--seed=2"], "the first is 1."),
        (["--seed=x"], "--seed=x"),
        (["--modeldir=a"], "Unknown command line flag 'modeldir'. Did you mean"),
    ],
)
def test_mistakes_are_one_line_with_status_2(values, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        parse(values, *arguments)
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1


@pytest.mark.parametrize("flag", ["--help", "--helpshort", "--helpfull"])
def test_help_is_no_mistake(capsys, flag):
    app.define_help_flags()
    with pytest.raises(SystemExit) as end:
        command_flags.parse(["program", flag])
    assert end.value.code == 0
    assert "--help" in capsys.readouterr().out


def test_a_flag_that_takes_several_values_may_be_repeated(values):
    parse(values, "--input=a,b", "--input=c")
    assert command_flags.values_of(values.input) == ["a", "b", "c"]


def test_each_parse_begins_anew(values):
    assert parse(values, "--seed=1", "rest") == ["program", "rest"]
    parse(values, "--seed=2", "--model_dir=a")
    assert (values.seed, values.model_dir) == (2, "a")


def test_whole_number_may_be_spelled_with_an_exponent(values):
    parse(values, "--seed=1e6")
    assert values.seed == 1_000_000


@pytest.mark.parametrize("value", ["1.5", "ten", "-1", "nan"])
def test_value_that_is_no_count_is_one_line_with_the_type(values, capsys, value):
    with pytest.raises(SystemExit) as end:
        parse(values, f"--seed={value}")
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert f"--seed={value}: " in line and line.count("\n") == 1


def test_numbers_are_finite(values, capsys):
    flags.DEFINE_float("share", 0.5, "", flag_values=values)
    with pytest.raises(SystemExit):
        parse(values, "--share=nan")
    assert "--share=nan: 'nan': expected a finite number" in capsys.readouterr().err
