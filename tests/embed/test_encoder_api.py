"""The Python API: signatures, types of sequences, copies."""

import argparse
import copy
import inspect
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

import prottrans_jax
from prottrans_jax.commands import console, embedding
from prottrans_jax.embed import settings
from prottrans_jax.encoders import frozen_models, loading
from prottrans_jax.proteins import fasta

# Flags of the process, not of an encoder or a job.
_OF_THE_COMMAND = {"input", "output", "device", "config"}


def _flags(add):
    """(name, default) of the flags that are specific to a subcommand."""

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
    parameters = _defaults(frozen_models.Encoder.embed_fasta)
    of_models = _defaults(loading.load_encoder)
    flags = _flags(embedding.add_embed)
    for name in flags.keys() - _OF_THE_COMMAND - of_models.keys() - {"model"}:
        if name == "no_progress":
            continue
        assert name in parameters, f"--{name} is no parameter of embed_fasta"
        same = {"layers": int, "reuse": tuple}.get(name, lambda value: value)
        assert same(flags[name]) == parameters[name], name
    of_python = {"self", "source", "devices", "progress"}
    assert parameters.keys() - flags.keys() == of_python
    assert not any(
        p.kind is p.VAR_KEYWORD
        for p in inspect.signature(
            frozen_models.Encoder.embed_fasta
        ).parameters.values()
    )


def test_parameters_of_embed_fasta_are_the_options_of_a_job():
    parameters = _defaults(frozen_models.Encoder.embed_fasta)
    options = _defaults(settings.Options)
    assert {name: parameters.get(name) for name in options} == options
    assert parameters.keys() - options.keys() == {
        "self",
        "source",
        "output",
        "progress",
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"max_length": "100", "long": "skip"},
            "max_length='100': expected a whole",
        ),
        ({"batch_tokens": 1.5}, "batch_tokens=1.5: expected a whole number"),
        ({"max_batch": True}, "max_batch=True.*whole number"),
        ({"per_protein": "no"}, "per_protein='no': expected True or False"),
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


def test_a_single_sequence_gives_its_own_array(encoder):
    [listed] = encoder.embed(["MKTAY"])
    np.testing.assert_array_equal(encoder.embed("MKTAY"), listed)
    [pooled] = encoder.embed(["MKTAY"], pool="mean")
    assert pooled.shape == (12,)
    np.testing.assert_array_equal(encoder.embed("MKTAY", pool="mean"), pooled)
    assert encoder.embed(np.str_("MKTAY")).shape == (5, 12)


class Series:
    """Stand-in for a pandas Series."""

    def __iter__(self):
        return iter(["MKTAY", "ACD"])


@pytest.mark.parametrize(
    "sequences",
    [
        ("MKTAY", "ACD"),
        (x for x in ("MKTAY", "ACD")),
        {"a": "MKTAY", "b": "ACD"}.values(),
        np.array(["MKTAY", "ACD"]),
        np.array(["MKTAY", "ACD"], object),
        Series(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_ordered_iterables_of_sequences_are_accepted(encoder, sequences):
    lengths = [len(vectors) for vectors in encoder.embed(sequences)]
    assert lengths == [5, 3]


@pytest.mark.parametrize(
    "written",
    ["MKT*", "mkt", "M K T", "M-K.T", " MKT\n", "MK\r\nT", "M\tKT**", "-.MKT*-* "],
)
def test_sequences_are_cleaned_as_in_fasta(encoder, tmp_path, written):
    path = tmp_path / "x.fasta"
    path.write_bytes(f">A\n{written}\n".encode())
    assert [record.residues for record in fasta.read([path])] == [b"MKT"]
    right = encoder.embed(["MKT"])[0]
    np.testing.assert_array_equal(encoder.embed([written])[0], right)
    np.testing.assert_array_equal(encoder.embed(written), right)
    [(_, streamed)] = encoder.stream([("A", written)])
    np.testing.assert_array_equal(streamed, right)
    assert (
        encoder.tokenize([written])[0].tolist() == encoder.tokenize(["MKT"])[0].tolist()
    )


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (b"MKT", "sequence 1 is b'MKT' of type bytes.*decode"),
        (None, "sequence 1 is None of type NoneType.*missing values"),
        (float("nan"), "sequence 1 is nan of type float.*missing values"),
        (7, "sequence 1 is 7 of type int, not a str"),
        (["M", "K"], "sequence 1 is .* of type list.*join"),
        (("id", "MK"), r"sequence 1 is .* of type tuple.*stream takes"),
        (np.array(["M", "K"]), "sequence 1 is .* of type ndarray.*join"),
        ("", "sequence 1 is '': it has no residues"),
        ("-.* ", "sequence 1 is .*: it has no residues"),
        ("MK*T", "sequence 1: .*position 2 .* a stop inside the sequence"),
        ("M K1T", "sequence 1: '1' at position 3 .*not a residue"),
        ("MKé", "sequence 1: 'é' at position 2 .*not a residue"),
        ("M\u2010K", "sequence 1: .* at position 1 .*not a residue"),
        (">A\nMKT", "sequence 1: '>' at position 0 .*embed_fasta"),
        ("proteins.fasta", "sequence 1 is 'proteins.fasta'.*name of a file"),
        ("x.fa.gz", "sequence 1 is 'x.fa.gz'.*name of a file"),
    ],
)
def test_a_sequence_that_cannot_be_used_is_named_with_position_and_type(
    encoder, odd, message
):
    for method in (encoder.embed, encoder.tokenize, encoder.attention_maps):
        with pytest.raises(ValueError, match=message) as error:
            method(["MKTAY", odd])
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message.replace("sequence 1", "protein 'P'")):
        list(encoder.stream([("A", "MKTAY"), ("P", odd)]))


class DataFrame:
    columns = ("id", "sequence")

    def __iter__(self):
        return iter(self.columns)

    def __repr__(self):
        return "  id sequence\n0  A      MKT"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (b"MKT", "of type bytes"),
        (None, "None of type NoneType"),
        (3.0, "3.0 of type float"),
        ({"MKT", "ACD"}, "of type set.*no order"),
        ({"a": "MKT"}, r"of type dict.*list\(proteins.values"),
        (np.array("MKT"), "of type ndarray"),
        (DataFrame(), "not id sequence 0 A MKT of type DataFrame.*column"),
    ],
)
def test_arguments_other_than_lists_of_sequences_are_refused(
    encoder, argument, message
):
    with pytest.raises(ValueError, match=message):
        encoder.embed(argument)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (["MKT"], "protein 0 is 'MKT' of type str, not an .id, sequence. pair"),
        ([("a", "MK"), ("b",)], "protein 1 is .* of type tuple, not an"),
        ([None], "protein 0 is None of type NoneType"),
    ],
)
def test_stream_refuses_elements_that_are_not_pairs(encoder, argument, message):
    with pytest.raises(ValueError, match=message):
        list(encoder.stream(argument))
    with pytest.raises(ValueError, match="window=0"):
        list(encoder.stream([("a", "MK")], window=0))


def test_no_sequence_gives_no_vector(encoder):
    assert encoder.embed([]) == []
    pooled = encoder.embed([], pool="mean")
    assert pooled.shape == (0, 12) and pooled.dtype == np.float32


def test_attention_maps_of_a_list_are_a_list(encoder):
    first, second = encoder.attention_maps(["MKTAY", "A-CD*"])
    assert first.shape == (3, 2, 6, 6) and second.shape == (3, 2, 4, 4)
    np.testing.assert_array_equal(encoder.attention_maps("MKTAY"), first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, "pickle"])
def test_a_copy_of_a_used_encoder_gives_the_same_bits(model_folder, dtype, copied):
    encoder = prottrans_jax.load_encoder(model_folder, dtype=dtype)
    sequences = ["MKTAYIAKQR", "ACD"]
    right = encoder.embed(sequences)
    if copied == "pickle":
        other = pickle.loads(pickle.dumps(encoder))
    else:
        other = copied(encoder)
    assert other.fingerprint == encoder.fingerprint and repr(other) == repr(encoder)
    assert jax.tree.structure(other.params) == jax.tree.structure(encoder.params)
    leaves = jax.tree.leaves(other.params), jax.tree.leaves(encoder.params)
    for theirs, ours in zip(*leaves, strict=True):
        assert theirs.dtype == ours.dtype
        assert np.asarray(theirs).tobytes() == np.asarray(ours).tobytes()
    for theirs, ours in zip(other.embed(sequences), right, strict=True):
        np.testing.assert_array_equal(theirs, ours)


def test_a_whole_model_is_pickled(model_folder):
    model = prottrans_jax.load_model(model_folder, dtype="float32")
    tokens = np.array([[5, 6, 1]])
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other(tokens, tokens), model(tokens, tokens))


_IN_ANOTHER_PROCESS = """
import pickle, sys
encoder = pickle.load(open(sys.argv[1], "rb"))
sys.stdout.buffer.write(pickle.dumps(encoder.embed(["MKTAYIAKQR", "ACD"])))
"""


def test_another_process_gives_the_same_bits(encoder, tmp_path):
    (tmp_path / "encoder").write_bytes(pickle.dumps(encoder))
    done = subprocess.run(
        [sys.executable, "-c", _IN_ANOTHER_PROCESS, tmp_path / "encoder"],
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    right = encoder.embed(["MKTAYIAKQR", "ACD"])
    for theirs, ours in zip(pickle.loads(done.stdout), right, strict=True):
        np.testing.assert_array_equal(theirs, ours)


def test_a_progress_bar_is_shown_if_asked(encoder, fasta_file, tmp_path, capsys):
    vectors = encoder.embed(["MKTAY", "ACD"], progress=True)
    shown = capsys.readouterr()
    assert "8 of 8 residues" in shown.err and not shown.out
    np.testing.assert_array_equal(vectors[0], encoder.embed(["MKTAY", "ACD"])[0])
    encoder.embed_fasta(fasta_file, tmp_path / "out.h5", progress=True)
    assert "100%" in capsys.readouterr().err
    encoder.embed_fasta(fasta_file, tmp_path / "other.h5")
    assert capsys.readouterr().err == ""


_DNA = "ACGTTGCAAGCTTAGGCATN" * 3


def _warnings(caplog):
    return [r.getMessage() for r in caplog.records if "nucleotides?" in r.getMessage()]


@pytest.mark.parametrize("sequences", [_DNA, _DNA.lower(), [_DNA[:20]] * 3])
def test_nucleotides_given_in_python_are_embedded_with_one_warning(
    encoder, sequences, caplog
):
    encoder.embed(sequences)
    [warning] = _warnings(caplog)
    assert warning.startswith("100 % of the 60 letters given are A, C, G, T, U or N")


def test_a_stream_of_nucleotides_is_warned_of_once(encoder, caplog):
    pairs = [(str(number), _DNA) for number in range(6)]
    assert len(list(encoder.stream(pairs, window=2))) == 6
    assert len(_warnings(caplog)) == 1


@pytest.mark.parametrize(
    "sequences", [[], [_DNA[:59]], ["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ" * 2, _DNA]]
)
def test_proteins_and_short_base_sequences_cause_no_warning(encoder, sequences, caplog):
    encoder.embed(sequences)
    assert not _warnings(caplog)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"layers": 1.5}, "layers: 1.5 is not the number of a layer"),
        ({"layers": True}, "layers: True is not the number of a layer"),
        ({"layers": [0, "1"]}, "layers: '1' is not the number of a layer"),
        ({"max_tokens": 0}, "max_tokens=0: expected a whole number, 1 or more"),
        ({"max_tokens": "9"}, "max_tokens='9': expected a whole number"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(encoder, argument, words):
    with pytest.raises(ValueError, match=words):
        encoder.embed(["MKT"], **argument)


def test_a_stream_of_nothing_iterable_and_a_window_of_text_are_named(encoder):
    with pytest.raises(ValueError, match="pairs, not None of type NoneType"):
        list(encoder.stream(None))
    with pytest.raises(ValueError, match="window='x': expected a whole number"):
        list(encoder.stream([("a", "MKT")], window="x"))


def test_layers_may_be_numbers_of_numpy(encoder):
    chosen = np.array([0, 2])
    by_list = encoder.embed("MKTAY", layers=[0, 2])
    np.testing.assert_array_equal(encoder.embed("MKTAY", layers=chosen), by_list)
    by_number = encoder.embed("MKTAY", layers=chosen[1])
    np.testing.assert_array_equal(by_number, by_list[1])


def test_a_type_that_is_not_known_is_named(model_folder):
    with pytest.raises(ValueError, match="dtype='float8' is not known"):
        prottrans_jax.load_encoder(model_folder, dtype="float8")
