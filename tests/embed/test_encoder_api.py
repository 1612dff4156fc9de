"""What Python users call: signatures, sequences as they are given, copies."""

import argparse
import inspect

import pytest

from prottrans_jax import encoders
from prottrans_jax.commands import console, embedding
from prottrans_jax.embed import settings

# Flags of the process, not of an encoder or a job.
_OF_THE_COMMAND = {"input", "output", "device", "config"}


def _flags(add):
    """(name, default) of the flags that a subcommand adds to those that all have."""

    def parser_of(add):
        parser = argparse.ArgumentParser()
        add(parser.add_subparsers())
        return parser._subparsers._group_actions[0].choices.popitem()[1]

    common = parser_of(lambda commands: console.add_command(commands, "x", None, ""))
    known = {action.dest for action in common._actions}
    return {
        action.dest: action.default
        for action in parser_of(add)._actions
        if action.dest not in known
    }


def _defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters}


def test_flags_of_embed_are_parameters_of_embed_fasta_with_their_defaults():
    parameters = _defaults(encoders.Encoder.embed_fasta)
    of_models = _defaults(encoders.load_encoder)
    flags = _flags(embedding.add_embed)
    for name in flags.keys() - _OF_THE_COMMAND - of_models.keys() - {"model"}:
        if name == "no_progress":
            continue
        assert name in parameters, f"--{name} is no parameter of embed_fasta"
        same = {"layers": int, "reuse": tuple}.get(name, lambda value: value)
        assert same(flags[name]) == parameters[name], name
    assert parameters.keys() - flags.keys() == {"self", "source", "devices"}
    assert not any(
        p.kind is p.VAR_KEYWORD
        for p in inspect.signature(encoders.Encoder.embed_fasta).parameters.values()
    )


def test_parameters_of_embed_fasta_are_the_options_of_a_job():
    parameters = _defaults(encoders.Encoder.embed_fasta)
    options = _defaults(settings.Options)
    assert {name: parameters.get(name) for name in options} == options
    assert parameters.keys() - options.keys() == {"self", "source", "output"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_length": "100", "long": "skip"}, "max_length='100'.*not a str"),
        ({"batch_tokens": 1e6}, "batch_tokens=1000000.0.*whole number"),
        ({"max_batch": True}, "max_batch=True.*whole number"),
        ({"per_protein": "no"}, "per_protein='no': it must be True or False"),
        ({"output_dtype": "float64"}, "output_dtype='float64'.*float16 or float32"),
        ({"pool": "mean"}, "pool='mean'.*add per_protein"),
    ],
)
def test_options_of_a_wrong_type_are_named(
    encoder, fasta_file, tmp_path, option, message
):
    with pytest.raises(ValueError, match=message):
        encoder.embed_fasta(fasta_file, tmp_path / "out.h5", **option)
    assert list(tmp_path.iterdir()) == [fasta_file]


def test_unknown_options_are_refused(encoder, fasta_file, tmp_path):
    with pytest.raises(TypeError, match="batch_size"):
        encoder.embed_fasta(fasta_file, tmp_path / "out.h5", batch_size=9)
