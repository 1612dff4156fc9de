"""Proteins left out, cut, kept or made of X are reported, also by `verify`."""

import json

import h5py
import jax
import pytest

from cases.embed_cases import embed, random_proteins, read, write_fasta
import prottrans_jax
from prottrans_jax import cli
from prottrans_jax.embed import job, settings, verifying
from prottrans_jax.interop import huggingface
from prottrans_jax.models import bert
from prottrans_jax.proteins import nucleotides


@pytest.fixture(scope="module")
def short_model(tmp_path_factory):
    """A BERT with positions for 30 residues."""
    config = bert.BertConfig(
        vocab_size=30,
        num_layers=1,
        num_heads=2,
        head_dim=4,
        d_model=8,
        d_ff=12,
        max_length=32,
    )
    folder = tmp_path_factory.mktemp("models") / "short_bert"
    huggingface.write(folder, config, bert.init_params(config, jax.random.key(0)))
    return folder


@pytest.fixture(scope="module")
def short_encoder(short_model):
    return prottrans_jax.load_encoder(
        short_model, dtype="float32", vocabulary="prot_bert"
    )


@pytest.fixture
def mixed(tmp_path):
    """Proteins of 10, 31, 30 and 70 residues."""
    rest = {"LONG": "MKTAYIA" * 10, "SHORT": "M" * 10, "ONE_MORE": "K" * 31}
    return write_fasta(tmp_path / "mixed.fasta", rest | {"FITS": "A" * 30})


def plan_of(encoder, source, output, **options):
    plans = []
    job_options = settings.Options(**options)
    report = job.embed_fasta(encoder, source, output, job_options, on_plan=plans.append)
    return report, plans[0]


def rows(output):
    lines = output.with_name(output.name + ".skipped.tsv").read_text().splitlines()
    return [line.split("\t") for line in lines]


# ------------------------------------------------------------- truncated and in pieces


@pytest.mark.parametrize("kind", ["per_residue", "per_protein"])
def test_truncated_proteins_are_named_and_keep_both_lengths(
    encoder, mixed, tmp_path, kind
):
    output = tmp_path / "out.h5"
    options = {"max_length": 30, "long": "truncate", kind: True}
    report, plan = plan_of(encoder, mixed, output, **options)
    assert [(c.name, c.action) for c in report.cut] == [
        ("LONG", "truncated"),
        ("ONE_MORE", "truncated"),
    ]
    assert plan.cut == {"truncated": 2} and not report.skipped
    assert rows(output)[0] == ["id", "line", "reason", "detail", "action"]
    assert [(r[0], r[1], r[4]) for r in rows(output)[1:]] == [
        ("LONG", "1", "truncated"),
        ("ONE_MORE", "5", "truncated"),
    ]
    about = json.loads((tmp_path / "out.h5.json").read_text())
    assert (about["truncated"], about["chunked"], about["skipped"]) == (2, 0, 0)
    with h5py.File(output) as file:
        lengths = {
            key: (value.attrs["length"], value.attrs.get("sequence_length"))
            for key, value in file.items()
        }
    assert lengths == {
        "LONG": (30, 70),
        "ONE_MORE": (30, 31),
        "FITS": (30, None),
        "SHORT": (10, None),
    }
    expected, _ = verifying.expected(mixed, "auto")
    check = verifying.check_file(output, expected)
    assert (check.faults, check.extra, check.truncated) == ([], [], 2)


def test_a_finished_output_still_names_what_was_truncated(encoder, mixed, tmp_path):
    output = tmp_path / "out.h5"
    options = {"max_length": 30, "long": "truncate"}
    embed(encoder, mixed, output, **options)
    output.with_name("out.h5.skipped.tsv").unlink()
    report = embed(encoder, mixed, output, **options)
    assert (report.embedded, len(report.cut)) == (0, 2)
    assert len(rows(output)) == 3


def test_proteins_in_pieces_are_named(encoder, mixed, tmp_path):
    output = tmp_path / "out.h5"
    report, plan = plan_of(encoder, mixed, output, max_length=40, long="chunk")
    assert [(c.name, c.action) for c in report.cut] == [("LONG", "chunked")]
    assert plan.cut == {"chunked": 1}
    assert rows(output)[1][4] == "chunked"
    assert json.loads((tmp_path / "out.h5.json").read_text())["chunked"] == 1
    with h5py.File(output) as file:
        assert file["LONG"].attrs["length"] == 70


def test_the_commands_say_which_proteins_were_truncated(
    model_folder, mixed, tmp_path, capsys
):
    output = str(tmp_path / "out.npz")
    command = ["embed", "-i", str(mixed), "-o", output, "-m", str(model_folder)]
    assert cli.main([*command, "--max-length", "30", "--long", "truncate"]) == 0
    said = capsys.readouterr().err
    assert "2 proteins truncated to 30 residues: LONG, ONE_MORE." in said
    assert cli.main(["verify", output, "-i", str(mixed)]) == 0
    assert "sound, 2 truncated (--long truncate)" in capsys.readouterr().out


# ------------------------------------------------------- longer than the model's limit


def test_proteins_beyond_the_positions_stop_the_run_before_it_begins(
    short_encoder, mixed, tmp_path
):
    with pytest.raises(ValueError) as error:
        embed(short_encoder, mixed, tmp_path / "out.h5")
    for words in (
        f"{mixed}:1: 'LONG' has 70 residues, the model has positions for 30",
        "of 4 proteins 2 are longer",
        "--long skip, chunk or truncate",
    ):
        assert words in str(error.value)
    assert not (tmp_path / "out.h5").exists()


def test_the_plan_counts_what_is_left_out_and_names_a_protein_that_is_not(
    short_encoder, mixed, tmp_path
):
    report, plan = plan_of(short_encoder, mixed, tmp_path / "out.h5", long="skip")
    reason = "longer than the model has positions for"
    assert plan.left_out == {reason: 2}
    assert (plan.proteins, plan.longest, plan.longest_id) == (2, 30, "FITS")
    assert [(s.name, s.reason) for s in report.skipped] == [
        ("LONG", reason),
        ("ONE_MORE", reason),
    ]


@pytest.mark.parametrize(("policy", "length"), [("truncate", 30), ("chunk", 70)])
def test_the_models_positions_are_the_limit_that_policies_use(
    short_encoder, mixed, tmp_path, policy, length
):
    report = embed(short_encoder, mixed, tmp_path / "out.h5", long=policy)
    assert len(report.cut) == 2 and not report.skipped
    assert read(tmp_path / "out.h5")["LONG"].shape == (length, 8)


@pytest.mark.parametrize("ending", ["h5", "npz"])
def test_skipping_by_the_models_limit_goes_on_from_an_output_without_a_limit(
    short_encoder, mixed, tmp_path, ending
):
    # Earlier versions left the longer ones out by themselves, and wrote `long: null`.
    output = tmp_path / f"out.{ending}"
    short = write_fasta(tmp_path / "short.fasta", {"SHORT": "M" * 10})
    embed(short_encoder, short, output)
    report = embed(short_encoder, mixed, output, long="skip")
    assert report.embedded + report.reused == 2 and len(report.skipped) == 2
    about = json.loads((tmp_path / f"out.{ending}.json").read_text())
    assert about["run"]["long"] is None


def test_an_explicit_limit_is_part_of_the_run_identity(short_encoder, mixed, tmp_path):
    embed(short_encoder, mixed, tmp_path / "out.h5", long="skip", max_length=30)
    about = json.loads((tmp_path / "out.h5.json").read_text())
    assert about["run"]["long"] == ["skip", 30, None]


def test_both_limits_leave_out_by_their_own_reason(short_encoder, mixed, tmp_path):
    options = {"long": "skip", "max_length": 50}
    report, plan = plan_of(short_encoder, mixed, tmp_path / "out.h5", **options)
    assert plan.left_out == {
        "longer than --max-length": 1,
        "longer than the model has positions for": 1,
    }
    assert len(report.skipped) == 2


def test_pieces_longer_than_the_model_takes_are_refused(short_encoder, mixed, tmp_path):
    with pytest.raises(ValueError, match=r"max_length=31 .* Choose 30 or less"):
        embed(short_encoder, mixed, tmp_path / "out.h5", long="chunk", max_length=31)


def test_a_policy_without_any_limit_is_refused(encoder, mixed, tmp_path):
    with pytest.raises(ValueError, match="takes proteins of any length"):
        embed(encoder, mixed, tmp_path / "out.h5", long="skip")


def test_the_longest_of_a_plan_is_never_left_out(encoder, mixed, tmp_path):
    _, plan = plan_of(encoder, mixed, tmp_path / "out.h5", long="skip", max_length=30)
    assert (plan.longest, plan.longest_id) == (30, "FITS")


# ---------------------------------------------------------- kept from earlier inputs


@pytest.fixture
def two_inputs(encoder, tmp_path):
    """An output of six proteins, and an input of the first four."""
    proteins = random_proteins(6, seed=4)
    output = tmp_path / "out.h5"
    embed(encoder, write_fasta(tmp_path / "all.fasta", proteins), output)
    fewer = dict(list(proteins.items())[:4])
    return output, write_fasta(tmp_path / "fewer.fasta", fewer), proteins


def test_proteins_of_an_earlier_input_are_counted(encoder, two_inputs):
    output, fewer, proteins = two_inputs
    before = output.read_bytes()
    for _ in range(2):  # The second time the output is known to be complete.
        report = embed(encoder, fewer, output)
        assert (report.embedded, report.reused, report.kept) == (0, 4, 2)
    assert output.read_bytes() == before
    about = json.loads(output.with_name("out.h5.json").read_text())
    assert about["input"]["path"] == str(fewer)
    assert (about["proteins"], about["kept_from_earlier_inputs"]) == (6, 2)
    assert read(output).keys() == proteins.keys()


def test_verify_distinguishes_extra_and_missing_proteins(
    encoder, two_inputs, tmp_path, capsys
):
    output, fewer, _ = two_inputs
    assert cli.main(["verify", str(output), "-i", str(fewer)]) == 0
    said = capsys.readouterr().out
    assert f"2 proteins of the file not in {fewer}" in said and "P4, P5" in said
    more = write_fasta(tmp_path / "more.fasta", random_proteins(7, seed=4))
    assert cli.main(["verify", str(output), "-i", str(more)]) == 3
    said = capsys.readouterr()
    assert "P6: missing" in said.out and "1 fault." in said.err


def test_without_resume_everything_is_computed_anew(encoder, two_inputs):
    output, fewer, proteins = two_inputs
    report = embed(encoder, fewer, output, resume=False)
    assert (report.embedded, report.reused, report.kept) == (4, 0, 0)
    assert report.dropped == 2
    assert list(read(output)) == list(proteins)[:4]


def test_without_resume_a_complete_output_is_computed_anew(encoder, two_inputs):
    output, fewer, _ = two_inputs
    embed(encoder, fewer, output, resume=False)
    before = output.read_bytes()
    report = embed(encoder, fewer, output, resume=False)
    assert (report.embedded, report.dropped) == (4, 0)
    assert output.read_bytes() == before


# ------------------------------------------------------------------- odd letters


@pytest.fixture
def dna(tmp_path):
    return write_fasta(tmp_path / "dna.fasta", {"N1": "ACGT" * 20, "N2": "GATTACA" * 9})


def test_a_file_of_nucleotides_is_refused_with_the_way_out(
    model_folder, dna, tmp_path, capsys
):
    output = tmp_path / "out.h5"
    command = ["embed", "-i", str(dna), "-o", str(output), "-m", str(model_folder)]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    for words in (str(dna), "100%", "'N1' in line 1", "--allow-nucleotides"):
        assert words in said
    # Leaving all of it out is no way out.
    assert cli.main([*command, "--on-bad", "skip"]) == 2
    assert not output.exists()
    assert cli.main([*command, "--allow-nucleotides"]) == 0
    assert cli.main(["verify", str(output), "-i", str(dna)]) == 0


def test_nucleotides_are_refused_in_python_too(encoder, dna, tmp_path):
    with pytest.raises(nucleotides.NucleotidesError):
        encoder.embed_fasta(dna, tmp_path / "out.h5")
    report = encoder.embed_fasta(dna, tmp_path / "out.h5", allow_nucleotides=True)
    assert report.embedded == 2


def test_one_record_of_nucleotides_is_left_out_like_other_bad_records(
    encoder, tmp_path
):
    proteins = random_proteins(8, seed=2) | {"GENE": "ATGGCC" * 12}
    source = write_fasta(tmp_path / "x.fasta", proteins)
    with pytest.raises(ValueError, match=r"x.fasta:17: 100% .* --allow-nucleotides"):
        embed(encoder, source, tmp_path / "out.h5")
    report = embed(encoder, source, tmp_path / "out.h5", on_bad="skip")
    assert [(s.name, s.reason) for s in report.skipped] == [("GENE", "nucleotides")]
    assert "GENE" not in read(tmp_path / "out.h5")


def test_proteins_of_x_alone_and_letters_read_as_x_are_reported(
    model_folder, tmp_path, capsys
):
    proteins = {"A": "X" * 30, "B": "MKUUO", "C": "XBZJ", "D": "MKX"}
    source = write_fasta(tmp_path / "x.fasta", proteins)
    output = str(tmp_path / "out.h5")
    command = ["embed", "-i", str(source), "-o", output, "-m", str(model_folder)]
    assert cli.main(command) == 0
    said = capsys.readouterr().err
    assert "2 proteins with no letter but X (A, C)" in said
    assert "Read as X: 2 U, 1 Z, 1 O, 1 B, 1 J." in said
    about = json.loads((tmp_path / "out.h5.json").read_text())
    assert about["nothing_but_x"] == 2 and about["unusual_letters"]["U"] == 2


# ---------------------------------------------------------------------- wording


def test_one_protein_is_counted_in_the_singular(model_folder, tmp_path, capsys):
    source = write_fasta(tmp_path / "x.fasta", {"A": "MKTAY"})
    output = str(tmp_path / "out.h5")
    command = ["embed", "-i", str(source), "-o", output, "-m", str(model_folder)]
    assert cli.main(command) == 0
    assert cli.main(["verify", output]) == 0
    assert cli.main(["reformat", output, str(tmp_path / "out.npz")]) == 0
    said = capsys.readouterr()
    assert "1 protein, 5 residues" in said.err and "Wrote 1 protein to" in said.err
    assert "1 protein, per residue, sound." in said.out
    assert "1 proteins" not in said.err + said.out


def test_info_prints_nested_values_as_lines(model_folder, tmp_path, capsys):
    source = write_fasta(tmp_path / "x.fasta", {"A": "MKTAY"})
    output = str(tmp_path / "out.h5")
    command = ["embed", "-i", str(source), "-o", output, "-m", str(model_folder)]
    assert cli.main(command) == 0
    for path in (output, str(model_folder)):
        assert cli.main(["info", path]) == 0
        said = capsys.readouterr().out
        assert "{" not in said and "[" not in said and "Config(" not in said
    about = json.loads((tmp_path / "out.h5.json").read_text())
    assert about["options"]["per_residue"] and not about["options"]["per_protein"]


def test_info_prints_none_for_missing_values_and_no_unknown_residues(
    model_folder, tmp_path, capsys
):
    source = write_fasta(tmp_path / "x.fasta", {"A": "MKTAY", "B": "MKTAYIAK"})
    output = str(tmp_path / "out.csv")
    command = ["embed", "-i", str(source), "-o", output, "-m", str(model_folder)]
    limit = ["--long", "truncate", "--max-length", "6"]
    assert cli.main([*command, "--per-protein", *limit]) == 0
    assert cli.main(["info", output]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    about = {line[0]: line[1] for line in lines if len(line) == 2}
    assert about["long"] == "truncate, 6, none" and "residues" not in about
    assert about["model_revision"] == "none"


def test_differing_settings_are_listed(model_folder, tmp_path, capsys):
    source = write_fasta(tmp_path / "x.fasta", {"A": "MKTAY"})
    output = str(tmp_path / "out.h5")
    command = ["embed", "-i", str(source), "-o", output, "-m", str(model_folder)]
    assert cli.main(command) == 0
    capsys.readouterr()
    limit = ["--long", "skip", "--max-length", "6"]
    assert cli.main([*command, "--per-protein", *limit]) == 2
    said = capsys.readouterr().err
    for words in (
        "dtype.residues: float16 -> (absent)",
        "dtype.protein: (absent) -> float32",
        "long: none -> skip, 6, none",
        "outputs: residues -> protein",
        "pooling: none -> mean",
    ):
        assert words in said


def test_damaged_vectors_are_named(model_folder, tmp_path, capsys):
    proteins = {"A": "MKTAYIAKQR" * 4, "B": "ACDEFGHIKL" * 4}
    source = write_fasta(tmp_path / "x.fasta", proteins)
    output = tmp_path / "out.h5"
    command = ["embed", "-i", str(source), "-o", str(output), "-m", str(model_folder)]
    assert cli.main(command) == 0
    vectors = read(output)["B"].tobytes()
    data = output.read_bytes()
    at = data.index(vectors) + 9
    output.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    assert cli.main(["verify", str(output)]) == 3
    assert "the vectors of B cannot be read" in capsys.readouterr().out


def test_ids_of_two_sequences_are_unusable_input(model_folder, tmp_path, capsys):
    source = tmp_path / "x.fasta"
    source.write_text(">A\nMK\n>A\nMKT\n")
    output = str(tmp_path / "out.h5")
    command = ["embed", "-i", str(source), "-o", output, "-m", str(model_folder)]
    assert cli.main(command) == 3
    said = capsys.readouterr().err
    assert "1 id occurs again" in said and "'A' in lines 1 and 3" in said


def test_a_character_is_shown_as_text_and_a_nameless_record_by_its_line(
    model_folder, tmp_path, capsys
):
    source = tmp_path / "x.fasta"
    source.write_text(">A\nMK*T\n>\nMKT\n>C\nMKV\n")
    output = str(tmp_path / "out.h5")
    command = ["embed", "-i", str(source), "-o", output, "-m", str(model_folder)]
    assert cli.main(command) == 3
    assert "'*' at column 3" in capsys.readouterr().err
    assert cli.main([*command, "--on-bad", "skip"]) == 3
    said = capsys.readouterr().err
    assert "1 record will be left out: header without an id." in said
    assert "Left out 1: header without an id (line 3)" in said
