"""Which evaluations there are, which files they use, and the table of results."""

import pytest

from prottrans_jax.downstream import (
    evaluation_sets,
    evaluation_tables,
    published_results,
    published_tasks,
)


def test_a_collection_stands_for_its_evaluations_once():
    chosen = evaluation_sets.choose(["q3", "paper"])
    assert [e.name for e in chosen] == ["q3", "q8", "q10", "q2"]
    # biotrainer 2.1.1, all_pbc_supervised_datasets: seven data sets.
    assert len(evaluation_sets.choose(["pbc"])) == 7


def test_a_misspelt_evaluation_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"no evaluation 'q33'.*Did you mean q3"):
        evaluation_sets.choose(["q33"])


def test_tasks_of_evaluations_are_published_tasks():
    for evaluation in evaluation_sets.EVALUATIONS.values():
        if evaluation.task is not None:
            assert published_tasks.get(evaluation.task).task.name == evaluation.task


def test_a_file_is_found_by_the_first_pattern_that_matches(tmp_path):
    part = evaluation_sets.Part(("new364*", "newpisces364*"))
    assert evaluation_sets.find(tmp_path, part) is None
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/newPISCES364.csv").touch()
    assert evaluation_sets.find(tmp_path, part).name == "newPISCES364.csv"
    (tmp_path / "NEW364.csv").touch()
    assert evaluation_sets.find(tmp_path, part).name == "NEW364.csv"


def test_two_files_for_one_test_set_are_refused_by_name(tmp_path):
    for name in ("casp12.csv", "CASP12_HHblits.csv"):
        (tmp_path / name).touch()
    part = evaluation_sets.Part(("casp12*",))
    with pytest.raises(ValueError, match=r"CASP12_HHblits.csv.*casp12.csv"):
        evaluation_sets.find(tmp_path, part)


def test_published_figures_are_those_of_the_readme():
    # Rows of the table in agemagician/ProtTrans's README.
    figures = published_results.PUBLISHED
    assert figures["q3", "CASP12"]["ProtT5-XL-U50"] == 0.81
    assert figures["q8", "CB513"]["ProtBert"] == 0.66
    assert figures["q10", "DeepLoc"]["ProtElectra-Generator"] == 0.59
    assert figures["q2", "DeepLoc"]["ProtTXL-BFD"] == 0.86
    assert figures["q3", "NEW364"]["ProtBert-BFD"] == pytest.approx(0.811)
    assert published_results.name_in_paper("Rostlab/prot_bert_bfd") == "ProtBert-BFD"
    assert published_results.name_in_paper("my_model") is None


RESULT = {
    "evaluation": "q3",
    "title": "Q3",
    "encoder": "prot_bert_bfd",
    "train_proteins": 9712,
    "validation_proteins": 1080,
    "notes": ["NEW364: no file"],
    "tests": [
        {
            "name": "CASP12",
            "proteins": 20,
            "metrics": {
                "accuracy": {"value": 0.7512, "low": 0.71, "high": 0.79},
                "mcc": {"value": None, "low": None, "high": None},
            },
        }
    ],
}
SETTINGS = {
    "epochs": 10,
    "learning_rate": 0.001,
    "batch_size": 64,
    "seed": 42,
    "resamples": 1000,
}


def test_a_table_has_our_figure_with_interval_beside_the_published_one():
    control = {
        **RESULT,
        "encoder": "one_hot",
        "tests": [
            {
                **RESULT["tests"][0],
                "first_minus_this": {"metric": "accuracy", "value": 0.1, "p": 0.002},
            }
        ],
    }
    missing = {"evaluation": "q8", "missing": "No file is named train*."}
    table = evaluation_tables.markdown([RESULT, control, missing], SETTINGS)
    lines = table.splitlines()
    assert lines[0] == (
        "| evaluation | test set | proteins | metric | prot_bert_bfd | one_hot "
        "| ProtBert-BFD, published |"
    )
    assert lines[2] == (
        "| Q3 | CASP12 | 20 | accuracy | 75.1 (71.0 to 79.0) "
        "| 75.1 (71.0 to 79.0), p = 0.002 | 76.0 |"
    )
    assert "| Q3 | CASP12 | 20 | mcc | not defined | not defined |  |" in lines
    assert "- q8: left out. No file is named train*." in lines
    assert lines[-1] == "- q3: NEW364: no file"
