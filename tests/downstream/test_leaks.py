"""Proteins in two splits are found, refused, reported or dropped."""

import pytest

from prottrans_jax.downstream import labelled, leaks, readers


def write(tmp_path, *rows):
    path = tmp_path / "own.csv"
    lines = ["id,sequence,label,split", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines))
    return readers.read(path)


def test_same_sequence_in_two_splits_is_refused_with_both_records(tmp_path):
    read = write(
        tmp_path,
        ("a", "MKV", "yes", "train"),
        ("b", "mkv", "no", "test"),
        ("c", "MKL", "no", "test"),
    )
    with pytest.raises(ValueError) as error:
        leaks.check(read)
    for words in ("a (train, ", "own.csv:2) and b (test, ", "own.csv:3)", "1 pair"):
        assert words in str(error.value)


def test_same_id_in_two_splits_is_found_and_in_one_split_is_not(tmp_path):
    read = write(
        tmp_path,
        ("a", "MKV", "yes", "train"),
        ("a", "MKL", "no", "val"),
        ("b", "MW", "no", "val"),
        ("b", "MW", "yes", "val"),
    )
    (leak,) = leaks.find(read)
    assert (leak.kind, leak.first.id, leak.second.split) == ("id", "a", "val")


def test_drop_leaves_out_the_protein_that_is_trained_on(tmp_path):
    read = write(
        tmp_path,
        ("a", "MKV", "yes", "test"),
        ("b", "MKV", "yes", "train"),
        ("c", "MKL", "no", "val"),
        ("d", "MKL", "no", "casp12"),
        ("e", "MW", "no", "train"),
    )
    kept = leaks.check(read, "drop")
    assert [protein.id for protein in kept.proteins] == ["a", "d", "e"]
    assert kept.notes[-1].startswith(
        "2 proteins left out, because they are in a second"
    )


def test_report_keeps_all_and_counts(tmp_path):
    read = write(tmp_path, ("a", "MKV", "yes", "train"), ("a", "MKV", "yes", "test"))
    reported = leaks.check(read, "report")
    assert len(reported.proteins) == 2
    assert reported.notes[-1].startswith("1 pair of proteins in two splits: a (train")
    assert reported.notes[-1].endswith("the same id and sequence")


def test_a_set_without_leaks_stays_as_it_is(tmp_path):
    read = write(tmp_path, ("a", "MKV", "yes", "train"), ("b", "ML", "no", "test"))
    assert leaks.check(read) is read


def test_sets_of_other_tasks_are_not_joined(tmp_path):
    read = write(tmp_path, ("a", "MKV", "yes", "train"), ("b", "ML", "no", "test"))
    (tmp_path / "x.csv").write_text("id,sequence,membrane\na,MKV,M\n")
    other = readers.read(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="cannot be joined: label, membrane"):
        labelled.joined(read, other)


# The pairs that README.md of the data states.
def test_known_overlaps_of_secondary_structure_are_found(shared):
    folder = shared / "data/secstruct"
    files = (
        *("netsurfp2_train.q3.jsonl.gz", "netsurfp2_val.q3.jsonl.gz"),
        *("casp12.jsonl", "cb513.jsonl.gz"),
    )
    sets = [readers.read(folder / file, task="secondary_structure_3") for file in files]
    found = leaks.find(labelled.joined(*sets))
    assert {(leak.first.id, leak.second.id) for leak in found} == {
        ("1wfb-A", "cb513-359"),
        ("1tii-C", "cb513-330"),
    }
    assert {leak.kind for leak in found} == {"sequence"}


def test_a_chain_of_ts115_in_training_is_found(shared):
    """5jen-C: TS115 is not among the data; its chain stands for it."""
    train = readers.read(shared / "data/secstruct/netsurfp2_train.q3.jsonl.gz")
    (chain,) = [protein for protein in train.proteins if protein.id == "5jen-C"]
    ts115 = labelled.LabelledProtein(
        "ts115-0", chain.residues, chain.labels, chain.mask, "ts115", "TS115.csv:2"
    )
    found = leaks.find(
        labelled.joined(train, labelled.LabelledSet(train.task, [ts115]))
    )
    assert [(leak.first.id, leak.second.id) for leak in found] == [
        ("5jen-C", "ts115-0")
    ]


def test_seven_training_proteins_of_deeploc_are_validation_proteins_too(shared):
    folder = shared / "data/deeploc"
    sets = [
        readers.read(
            folder / f"deeploc_{split}.tsv.gz", task="location", unknown="keep"
        )
        for split in ("train", "val", "test")
    ]
    found = leaks.find(labelled.joined(*sets))
    assert len({leak.first.id for leak in found}) == 7
    for leak in found:
        assert (leak.first.split, leak.second.split) == ("train", "val")
        assert leak.first.id != leak.second.id
        assert leak.first.labels == leak.second.labels


@pytest.mark.parametrize(
    ("file", "task"),
    [
        ("disorder/chezod_train_val.jsonl.gz", "disorder_chezod"),
        ("conservation/flip_conservation.jsonl.gz", "conservation"),
    ],
)
def test_sets_that_share_no_sequence_pass(shared, file, task):
    assert leaks.find(readers.read(shared / "data" / file, task=task)) == []
