"""Every format is recognised, read and, where it is damaged, refused with its place."""

import gzip
import json

import numpy as np
import pytest

from prottrans_jax.downstream import (
    labelled,
    prediction_metrics,
    published_tasks,
    readers,
)
from prottrans_jax.downstream.readers import label_files

Q3 = "secondary_structure_3"


def write(path, text):
    path.write_text(text)
    return path


def classes_of(protein, task):
    return [task.classes[k] if k >= 0 else None for k in np.ravel(protein.labels)]


def test_biotrainer_residue_classes_with_mask(tmp_path):
    # As PBC's secondary_structure.fasta.
    path = write(
        tmp_path / "pbc.fasta",
        ">1es5-A SET=train TARGET=CCHE MASK=0111\nVT\nKP\n"
        ">2a6h-E SET=casp12 TARGET=HH\nMU\n",
    )
    read = readers.read(path, task=Q3)
    first, second = read.proteins
    assert (first.residues, first.split, second.split) == ("VTKP", "train", "casp12")
    assert classes_of(first, read.task) == ["C", "C", "H", "E"]
    assert first.counts.tolist() == [False, True, True, True]
    assert second.mask is None and second.counts.all()
    assert second.place == f"{path}:4"


def test_biotrainer_residue_numbers_and_999_for_missing(tmp_path):
    # As PBC's disorder_chezod.fasta.
    path = write(
        tmp_path / "disorder.fasta",
        ">26672 SET=train TARGET=999.0;-0.5;2.73;999.0 MASK=0110\nMASN\n",
    )
    (protein,) = readers.read(path, task="disorder_chezod").proteins
    np.testing.assert_array_equal(
        protein.labels, np.float32([np.nan, -0.5, 2.73, np.nan])
    )
    assert protein.labels.dtype == np.float32


def test_flip_proteins_with_validation_and_without_split(tmp_path):
    path = write(
        tmp_path / "gb1.fasta",
        ">Sequence0 TARGET=1.5 SET=train VALIDATION=False\nMQYK\n"
        ">Sequence1 TARGET=2 SET=train VALIDATION=True\nMQYR\n"
        ">Sequence2 TARGET=0.25 SET=test VALIDATION=False\nMQYW\n"
        ">Sequence3 TARGET=0.1 SET=nan VALIDATION=False\nMQYF\n",
    )
    read = readers.read(path)
    assert read.task.is_regression and read.task.level == "protein"
    assert [p.split for p in read.proteins] == ["train", "val", "test"]
    assert [float(p.labels) for p in read.proteins] == [1.5, 2.0, 0.25]
    assert "1 protein in no split (SET=nan) left out" in read.notes


def test_flip_csv_marks_validation_in_a_column(tmp_path):
    path = write(
        tmp_path / "low_vs_high.csv",
        "sequence,target,set,validation\nMQYK,1.0,test,\nMQYR,0.5,train,True\n",
    )
    read = readers.read(path, task="gb1")
    assert [(p.id, p.split) for p in read.proteins] == [
        ("low_vs_high-0", "test"),
        ("low_vs_high-1", "val"),
    ]


def test_flip_folder_joins_sequences_labels_and_masks(tmp_path):
    write(tmp_path / "sequences.fasta", ">a\nMKV\n>b\nML\n>c\nMW\n")
    write(
        tmp_path / "sampled.fasta",
        ">b SET=test VALIDATION=False\nEC\n>a SET=train VALIDATION=True\nCHH\n",
    )
    (tmp_path / "mask.fasta.gz").write_bytes(gzip.compress(b">a\n011\n>b\n11\n"))
    read = readers.read(tmp_path, task=Q3)
    assert [(p.id, p.residues, p.split) for p in read.proteins] == [
        ("b", "ML", "test"),
        ("a", "MKV", "val"),
    ]
    assert read.proteins[1].counts.tolist() == [False, True, True]
    left_out = "1 protein of sequences.fasta without a label left out, the first: 'c'"
    assert left_out in read.notes


def test_deeploc_fasta_with_a_hyphen_in_the_location(tmp_path):
    path = write(
        tmp_path / "deeploc_data.fasta",
        ">Q9H400 Cell.membrane-M test\nMGLP\n>Q5I0E9 Cell.membrane-M\nMEVL\n"
        ">P1 Cytoplasm-Nucleus-U\nMKV\n>P2 Lysosome/Vacuole-S\nMKW\n",
    )
    location = readers.read(path, task="location")
    assert [(p.id, p.split) for p in location.proteins] == [
        *(("Q9H400", "test"), ("Q5I0E9", "train"), ("P2", "train"))
    ]
    assert [classes_of(p, location.task)[0] for p in location.proteins] == [
        *("Cell.membrane", "Cell.membrane", "Lysosome/Vacuole")
    ]
    assert (
        "1 protein with the unknown label 'Cytoplasm-Nucleus' left out (unknown=drop)"
        in location.notes
    )
    membrane = readers.read(path, task="membrane", unknown="keep")
    assert [classes_of(p, membrane.task)[0] for p in membrane.proteins] == [
        *("membrane", "membrane", None, "soluble")
    ]


def test_two_residues_without_a_blank_in_deeplocs_csv_are_two_residues(tmp_path):
    # ProtTrans issue 74: "AK" where a line of the FASTA file ended.
    path = write(tmp_path / "train.csv", "input,loc,membrane\nM K AK V,Nucleus,S\n")
    (protein,) = readers.read(path, task="location", split="train").proteins
    assert (protein.residues, protein.split, protein.id) == (
        "MKAKV",
        "train",
        "train-0",
    )


def test_netsurfp_csv(tmp_path):
    # As CASP12.csv of ProtTrans: labels without blanks, masks as numbers.
    path = write(
        tmp_path / "CASP12.csv",
        "input,dssp3,dssp8,disorder,cb513_mask\n"
        "S L R F,C C H E,C S G B,0.0 1.0 1.0 1.0,1.0 1.0 0.0 1.0\n"
        "MGA,CHH,CHI,1.0 1.0 0.0,1.0 1.0 1.0\n",
    )
    assert label_files.contents(path).format == "netsurfp"
    q8 = readers.read(path, task="secondary_structure_8")
    assert q8.task.classes == tuple("GHIBESTC")
    assert classes_of(q8.proteins[0], q8.task) == list("CSGB")
    assert q8.proteins[0].counts.tolist() == [False, True, True, True]
    q3 = readers.read(path, task=Q3, mask="cb513_resolved")
    assert q3.proteins[0].counts.tolist() == [False, True, False, True]
    disorder = readers.read(path, task="disorder")
    assert classes_of(disorder.proteins[1], disorder.task) == [
        *("ordered", "ordered", "disordered")
    ]
    assert disorder.proteins[0].mask is None


def test_file_with_labels_of_several_tasks_asks_for_one(tmp_path):
    path = write(tmp_path / "x.csv", "input,dssp3,dssp8\nMKV,CHH,CHH\n")
    with pytest.raises(ValueError, match=f"several tasks: {Q3}, secondary_structure_8"):
        readers.read(path)


@pytest.mark.parametrize(
    ("labels", "level", "classes"),
    [
        (("yes", "no", "maybe"), "protein", ("maybe", "no", "yes")),
        (("1.5", "-2e-3", "7"), "protein", ()),
        (("HHE", "EH", "HHHH"), "residue", ("E", "H")),
        (("010", "11", "0001"), "residue", ("0", "1")),
        (("a b a", "b b", "c a b a"), "residue", ("a", "b", "c")),
        (("0.5;1;2", "1;2", "1;2;3;4.5"), "residue", ()),
        (("[0.5, null, 2]", "[1, 2]", "[1, 2, 3, 4]"), "residue", ()),
    ],
)
def test_task_of_a_users_table_is_derived(tmp_path, labels, level, classes):
    rows = zip("abc", ("MKV", "ML", "MKWW"), labels, strict=True)
    text = "\n".join("\t".join(row) for row in [("ID", "Sequence", "Label"), *rows])
    read = readers.read(write(tmp_path / "own.tsv", text))
    assert (read.task.level, read.task.classes) == (level, classes)
    assert any(
        note.startswith("task derived from the column label") for note in read.notes
    )
    assert "no column of splits: all proteins are 'all'" in read.notes


def test_numbers_may_be_classes(tmp_path):
    path = write(tmp_path / "x.csv", "id,sequence,label\na,MKV,1\nb,ML,0\n")
    assert readers.read(path, classes=True).task.classes == ("0", "1")


def test_json_lines_have_null_for_a_missing_number(tmp_path):
    record = {"id": "p", "sequence": "MKV", "chezod": [None, 1.5, 2], "mask": "011"}
    path = write(tmp_path / "x.jsonl", json.dumps(record) + "\n\n")
    (protein,) = readers.read(path).proteins
    assert np.isnan(protein.labels[0]) and protein.labels[1:].tolist() == [1.5, 2]


def test_compressed_crlf_and_byte_order_mark(tmp_path):
    text = "\N{ZERO WIDTH NO-BREAK SPACE}id,sequence,label\r\na,MKV,yes\r\nb,ML,no\r\n"
    path = tmp_path / "x.csv"
    path.write_bytes(gzip.compress(text.encode()))
    assert [p.id for p in readers.read(path).proteins] == ["a", "b"]


@pytest.mark.parametrize(("rule", "value"), [("soluble", 0), ("membrane", 1)])
def test_unknown_membrane_class_read_as_a_class(tmp_path, rule, value):
    path = write(tmp_path / "x.csv", "id,sequence,membrane\na,MKV,U\n")
    read = readers.read(path, unknown=rule)
    assert int(read.proteins[0].labels) == value
    assert (
        f"1 protein with the unknown label 'U' read as {rule} (unknown={rule})"
        in read.notes
    )


def test_missing_label_is_left_out_or_kept_without_class(tmp_path):
    path = write(tmp_path / "x.csv", "id,sequence,label\na,MKV,\nb,ML,no\nc,MW,yes\n")
    assert [p.id for p in readers.read(path).proteins] == ["b", "c"]
    kept = readers.read(path, unknown="keep").proteins
    assert [int(p.labels) for p in kept] == [labelled.NO_CLASS, 0, 1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("b,MKV,HH,111", ":3: record 'b': q3 has 2 values, the sequence 3 residues"),
        ("b,MKV,HQH,111", "'b': label 'Q' at residue 2 is no class of secondary"),
        ("b,MKV,HHH,11", "'b': mask has 2 values, the sequence 3 residues"),
        ("b,MKV,HHH,121", "'b': '2' at residue 2 of mask is neither 1"),
        ("b,,HHH,111", "'b': the sequence is empty"),
        ("b,M-V,HHH,111", "'b': '-' at position 2 of the sequence is no residue"),
        ("b,MKV,HHH", ":3: 3 cells in a table of 4 columns"),
        (",MKV,HHH,111", ":3: the row has no id"),
    ],
)
def test_faults_are_named_with_file_line_and_record(tmp_path, row, words):
    path = write(tmp_path / "x.csv", f"id,sequence,q3,mask\na,MK,HC,11\n{row}\n")
    with pytest.raises(ValueError) as error:
        readers.read(path)
    assert str(path) in str(error.value) and words in str(error.value)


def test_one_label_of_another_length_does_not_make_a_task_of_proteins(tmp_path):
    rows = [f"p{k},{'MK' * 15},{'HE' * 15}" for k in range(3)]
    text = "\n".join(["id,sequence,label", *rows, "bad,MKV,HE"])
    with pytest.raises(ValueError, match="'bad': label has 2 values, the sequence 3"):
        readers.read(write(tmp_path / "x.csv", text))


def test_records_with_problems_are_left_out_and_counted(tmp_path):
    path = write(tmp_path / "x.csv", "id,sequence,q3\na,MK,HC\nb,M1,HC\nc,M,HC\n")
    problems = []
    read = readers.read(path, on_problem=problems.append)
    assert [p.id for p in read.proteins] == ["a"]
    assert len(problems) == 2 and "2 records left out for problems" in read.notes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("name,value\na,1\n", "no column of sequences"),
        ("id,sequence\na,MKV\n", "no column holds labels"),
        ("id,sequence,label\n", "the file holds no proteins"),
        ("{'id': 1}\n", ":1: not JSON"),
        ('{"id": "a", "q3": "HH"}\n', ':1: the object has no text "sequence"'),
        (">a\nMKV\n", ":1: record 'a': the header has no labels"),
        ("id,sequence,label,label\na,MKV,1,2\n", "two columns are named 'label'"),
    ],
)
def test_files_that_are_no_labels_are_refused(tmp_path, text, words):
    with pytest.raises(ValueError) as error:
        readers.read(write(tmp_path / "x", text))
    assert words in str(error.value)


def test_splits_without_train_are_noted(tmp_path):
    text = "id,sequence,label,split\na,MKV,yes,Train\nb,ML,no,test\n"
    read = readers.read(write(tmp_path / "x.csv", text))
    assert "no split is named train; the splits: Train, test" in read.notes
    with pytest.raises(ValueError, match="no split train; its splits: Train, test"):
        read.split("train")


@pytest.mark.parametrize("name", published_tasks.TASKS)
def test_published_task_names_a_metric_and_its_source(name):
    task = published_tasks.get(name).task
    assert task.name == name and task.source
    metric = prediction_metrics.METRICS[task.metric]
    assert metric.of_classes != task.is_regression


def test_unknown_task_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"task 'locations'\. .*: location,"):
        published_tasks.get("locations")


def test_ids_that_occur_again_in_a_split_are_counted_with_their_places(tmp_path):
    path = write(
        tmp_path / "mine.csv",
        "id,sequence,label,split\np,MKV,1.5,train\np,MKL,2.5,train\np,MKI,0.5,test\n",
    )
    notes = "\n".join(readers.read(path).notes)
    assert "1 id of several proteins of the same split" in notes
    assert f"p (train, {path}:2, {path}:3)" in notes


def test_labels_of_proteins_that_look_like_labels_of_residues_are_noted(tmp_path):
    path = write(
        tmp_path / "peptides.csv",
        "id,sequence,label\np,MKVL,HHCC\nq,MKV,HCC\nr,MKVLA,HHHCC\ns,MKVLA,HHC\n",
    )
    read = readers.read(path)
    assert read.task.level == "protein"
    assert any("3 of 4 labels are as long as their sequence" in n for n in read.notes)
