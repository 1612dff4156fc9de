import numpy as np
import pytest
import seqio
import tensorflow as tf

from cases import record_cases
from prottrans_jax.data.records import corpora, store
from prottrans_jax.data.rows import loader
from prottrans_jax.data.seqio import (
    byte_vocabulary,
    preprocessors,
    record_source,
    task_names,
)
from prottrans_jax.proteins import vocabulary
import prottrans_jax.tasks  # noqa: F401 (registers tasks)

OBJECTIVES = (
    "iid_denoise",
    "iid_denoise_all_ids",
    "span_corruption",
    "span_corruption_length_1",
    "masked_reconstruction",
)
# Of the other families, with the size of the vocabulary.
SINGLE_STREAM = {
    "masked_lm": 30,
    "masked_lm_pairs": 30,
    "masked_lm_kept": 30,
    "ngram_masked_lm": 34,
    "ngram_masked_lm_pairs": 34,
    "permutation_lm": 37,
    "permutation_lm_lanes": 37,
    "causal_lm": 24,
}


@pytest.fixture
def toy_as_fasta(toy_corpus, monkeypatch):
    monkeypatch.setenv(corpora.DATA_DIR, str(toy_corpus))
    return toy_corpus


def _examples(task, **options):
    options = {"split": "validation", "shuffle": False, "seed": 5, **options}
    return list(
        seqio.get_mixture_or_task(task).get_dataset(**options).as_numpy_iterator()
    )


def test_every_corpus_has_every_objective():
    sizes = dict.fromkeys(OBJECTIVES, 128) | SINGLE_STREAM
    for corpus in ("uniref50", "uniref100", "bfd", "sample", "fasta"):
        for objective, size in sizes.items():
            task = seqio.get_mixture_or_task(f"{corpus}_{objective}")
            assert task.splits == ("train", "validation")
            assert task.output_features["targets"].vocabulary.vocab_size == size


def test_any_seqio_user_gets_examples_of_iid_denoise(toy_as_fasta):
    residues = [
        r for _, r in record_cases.iterate(store.open(toy_as_fasta).split("validation"))
    ]
    examples = _examples("fasta_iid_denoise")
    assert len(examples) == 23
    for example, sequence in zip(examples, residues, strict=True):
        expected = [*vocabulary.PROT_T5.encode(sequence), 1]
        np.testing.assert_array_equal(example["targets"], expected)
        assert example["inputs"].shape == example["targets"].shape
    inputs = np.concatenate([e["inputs"] for e in examples])
    targets = np.concatenate([e["targets"] for e in examples])
    share = (inputs != targets).mean()
    assert abs(share - 0.15) < 5 * np.sqrt(0.15 * 0.85 / len(inputs))


@pytest.mark.parametrize("objective", SINGLE_STREAM)
def test_any_seqio_user_gets_examples_of_one_stream(toy_as_fasta, objective):
    residues = [
        r for _, r in record_cases.iterate(store.open(toy_as_fasta).split("validation"))
    ]
    task = seqio.get_mixture_or_task(f"fasta_{objective}")
    examples = _examples(f"fasta_{objective}", sequence_length={"inputs": 170})
    assert len(examples) == 23
    vocab = task.output_features["targets"].vocabulary
    for example, sequence in zip(examples, residues, strict=True):
        arrays = [v for k, v in example.items() if k != "id"]
        assert {len(a) for a in arrays} == {len(example["inputs"])}
        whole = vocab.decode(example["targets"].tolist()).replace("<unk>", "X")
        # Halves of pairs may be swapped.
        assert sorted(whole) == sorted(sequence.decode())
        assert set(example["loss_weights"]) <= {0.0, 1.0}
    short = _examples(f"fasta_{objective}", sequence_length={"inputs": 20})
    assert max(len(e["inputs"]) for e in short) == 20


def test_seqio_seeds_decide_the_corruption(toy_as_fasta):
    def inputs(seed):
        examples = _examples("fasta_span_corruption", seed=seed)
        return np.concatenate([e["inputs"] for e in examples])

    np.testing.assert_array_equal(inputs(1), inputs(1))
    assert inputs(1).shape == inputs(2).shape and (inputs(1) != inputs(2)).any()


def test_sequences_longer_than_the_row_are_cut_into_pieces_that_fit(toy_as_fasta):
    lengths = {"inputs": 30, "targets": 25}
    examples = _examples("fasta_iid_denoise", sequence_length=lengths)
    assert max(len(e["targets"]) for e in examples) == 25
    residues = np.concatenate([e["targets"][:-1] for e in examples])
    text = b"".join(
        r for _, r in record_cases.iterate(store.open(toy_as_fasta).split("validation"))
    )
    np.testing.assert_array_equal(residues, vocabulary.PROT_T5.encode(text))
    examples = _examples("fasta_span_corruption", sequence_length=lengths)
    assert max(len(e["inputs"]) for e in examples) <= 30
    assert all(e["inputs"][-1] == 1 and e["targets"][-1] == 1 for e in examples)


def test_shards_of_hosts_are_disjoint_and_complete(toy_as_fasta):
    ids = [
        [
            e["id"].decode()
            for e in _examples(
                "fasta_iid_denoise", shard_info=seqio.ShardInfo(i, 3), shuffle=True
            )
        ]
        for i in range(3)
    ]
    assert sorted(i for part in ids for i in part) == sorted(
        f"P3_{i}" for i in range(23)
    )


def test_shuffle_reaches_over_the_whole_split(toy_as_fasta):
    source = record_source.RecordSource("fasta")
    ids = [
        e["id"].decode()
        for e in source.get_dataset("train", shuffle=True, seed=2).as_numpy_iterator()
    ]
    in_order = [
        n for n, _ in record_cases.iterate(store.open(toy_as_fasta).split("train"))
    ]
    assert sorted(ids) == sorted(in_order)
    place = [in_order.index(n) for n in ids]
    assert abs(np.corrcoef(place, np.arange(301))[0, 1]) < 5 / np.sqrt(301)


def test_same_key_gives_the_same_piece_by_seqio_and_by_batch(toy_corpus):
    """The SeqIO preprocessor is the batch implementation on one record."""
    _, residues = next(record_cases.iterate(store.open(toy_corpus).split("train")))
    ids = vocabulary.PROT_T5.encode(residues)
    corrupt = preprocessors.iid_denoise()
    key = np.array([77], np.uint64)
    inputs, _ = corrupt.corrupt_record(ids, key, 40)
    assert inputs.lengths.sum() == len(inputs["input_tokens"])
    whole, targets = corrupt.corrupt_record(ids, key, None)
    np.testing.assert_array_equal(targets["target_tokens"][:-1], ids)
    # The first piece has the key of the whole record: its draws are the same.
    np.testing.assert_array_equal(
        inputs["input_tokens"][:40], whole["input_tokens"][:40]
    )


def test_missing_corpus_error_names_searched_folders_and_command(tmp_path, monkeypatch):
    monkeypatch.delenv(corpora.DATA_DIR, raising=False)
    with pytest.raises(ValueError) as error:
        corpora.find("uniref50", tmp_path)
    assert str(tmp_path / "uniref50") in str(error.value)
    assert (
        "python -m prottrans_jax.prepare --input uniref50.fasta.gz "
        f"--output {tmp_path / 'uniref50'}"
    ) in str(error.value)
    with pytest.raises(ValueError, match="PROTTRANS_DATA_DIR is set"):
        corpora.find("bfd")


def test_corpus_is_found_by_argument_before_environment(
    toy_corpus, other_corpus, monkeypatch
):
    parent = toy_corpus.parent
    monkeypatch.setenv(corpora.DATA_DIR, str(other_corpus))
    assert corpora.find("toy", parent) == toy_corpus
    assert corpora.find("other") == other_corpus
    assert corpora.find("fasta") == other_corpus
    assert corpora.find("fasta", toy_corpus) == toy_corpus
    # A folder of another name is not taken for the corpus.
    with pytest.raises(ValueError, match="corpus 'toy' is not prepared"):
        corpora.find("toy")
    assert corpora.find("sample", toy_corpus) == corpora.sample_dir()


@pytest.mark.parametrize(
    "table",
    [
        vocabulary.PROT_T5,
        vocabulary.PROT_BERT,
        vocabulary.PROT_ALBERT,
        vocabulary.PROT_TXL,
    ],
)
def test_tensorflow_look_up_equals_the_table_for_every_byte(table):
    ours = byte_vocabulary.ByteTableVocabulary(table)
    every_byte = bytes(range(256))
    encoded = ours.encode_tf(tf.constant(every_byte)).numpy()
    np.testing.assert_array_equal(encoded, ours.table.byte_table)
    assert encoded.dtype == np.int32
    text = "MKTuzobx"
    np.testing.assert_array_equal(
        ours.encode(text), ours.encode_tf(tf.constant(text)).numpy()
    )
    ids = ours.table.encode(text)
    assert ours.decode(ids) == "MKTXXXXX"
    assert ours.decode_tf(tf.constant(ids)).numpy() == b"MKTXXXXX"


def test_vocabularies_of_one_family_are_equal_and_survive_decoding_of_sentinels():
    t5, again, bert = (
        byte_vocabulary.ByteTableVocabulary(table)
        for table in (vocabulary.PROT_T5, vocabulary.PROT_T5, vocabulary.PROT_BERT)
    )
    assert t5 == again
    assert t5 != bert
    assert t5.vocab_size == 128
    assert t5.decode([3, 127, 4, 1, 5]) == "A<unk>L"


def test_sample_task_works_out_of_the_box():
    examples = seqio.get_mixture_or_task("sample_iid_denoise").get_dataset(
        sequence_length={"inputs": 128, "targets": 128}, split="validation", seed=0
    )
    example = next(examples.as_numpy_iterator())
    assert example["inputs"].shape == example["targets"].shape
    assert len(example["targets"]) <= 128 and example["targets"][-1] == 1


def test_names_known_without_seqio_are_those_registered():

    ours = {
        n for n in seqio.TaskRegistry.names() if n.split("_")[0] in task_names.CORPORA
    }
    assert ours == set(task_names.NAMES)


def test_unknown_task_is_one_line_with_the_nearest_three():
    with pytest.raises(ValueError, match="Nearest: sample_masked_lm, ") as error:
        loader.RowLoader("sample_maskd_lm", batch_size=2)
    assert len(str(error.value).splitlines()) == 1
