"""Computes `expected_scores.npz` with Hugging Face in torch: one mask at a time.

  PYTHONPATH=tests python tests/scoring/expect_scores.py

Needs torch and transformers 4.57. Nothing of `prottrans_jax.scoring` is used: rows are
made here, of one protein without padding.
"""

import pathlib
import tempfile

import numpy as np
import torch
import transformers

from cases import score_cases
from prottrans_jax.proteins import vocabulary

# Transformer-XL of transformers 4.38 and later calls `type_as(dtype=...)`, which torch
# does not have.
torch.Tensor.type_as = lambda x, other=None, dtype=None: x.to(dtype or other.dtype)

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
OUTPUT = pathlib.Path(__file__).with_name("expected_scores.npz")


def log_probabilities(logits, vocab):
    """[vocab] -> [20], a softmax over the whole vocabulary."""
    ids = [vocab.pieces.index(letter) for letter in LETTERS]
    return torch.log_softmax(logits.double(), dim=-1)[ids].numpy()


def ids_of(vocab, protein):
    return [vocab.pieces.index("X" if x == "X" else x) for x in protein]


def masked_lm(model, vocab, protein):
    row = [vocab.cls_id, *ids_of(vocab, protein), vocab.sep_id]
    rows = []
    for i in range(len(protein)):
        masked = list(row)
        masked[i + 1] = vocab.mask_id
        rows.append(
            log_probabilities(model(torch.tensor([masked])).logits[0, i + 1], vocab)
        )
    one_pass = model(torch.tensor([row])).logits[0]
    return np.stack(rows), np.stack(
        [log_probabilities(one_pass[i + 1], vocab) for i in range(len(protein))]
    )


def denoising(model, vocab, protein):
    row = [*ids_of(vocab, protein), vocab.eos_id]
    labels = torch.tensor([row])
    rows = []
    for i in range(len(protein)):
        masked = list(row)
        masked[i] = vocab.pieces.index("<extra_id_0>")
        logits = model(input_ids=torch.tensor([masked]), labels=labels).logits
        rows.append(log_probabilities(logits[0, i], vocab))
    one_pass = model(input_ids=labels, labels=labels).logits[0]
    return np.stack(rows), np.stack(
        [log_probabilities(one_pass[i], vocab) for i in range(len(protein))]
    )


def spans(model, vocab, protein):
    sentinel = vocab.pieces.index("<extra_id_0>")
    rows = []
    for i in range(len(protein)):
        masked = [*ids_of(vocab, protein), vocab.eos_id]
        masked[i] = sentinel
        logits = model(
            input_ids=torch.tensor([masked]),
            decoder_input_ids=torch.tensor([[vocab.pad_id, sentinel]]),
        ).logits
        rows.append(log_probabilities(logits[0, 1], vocab))
    return np.stack(rows)


def xlnet_ids(vocab, protein):
    ids = [0 if x == "X" else vocab.pieces.index(x) for x in protein]
    row = [*ids, vocab.sep_id, vocab.cls_id]
    return torch.tensor([row]), torch.tensor([[0] * (len(row) - 1) + [2]])


def permutation(model, vocab, protein):
    row, types = xlnet_ids(vocab, protein)
    length = row.shape[1]
    rows = []
    for i in range(len(protein)):
        perm_mask = torch.zeros(1, length, length)
        perm_mask[:, :, i] = 1.0  # Nobody sees residue i.
        target_mapping = torch.zeros(1, 1, length)
        target_mapping[0, 0, i] = 1.0
        logits = model(
            row,
            perm_mask=perm_mask,
            target_mapping=target_mapping,
            token_type_ids=types,
        ).logits
        rows.append(log_probabilities(logits[0, 0], vocab))
    return np.stack(rows)


def xlnet_left_to_right(model, vocab, protein):
    """One residue at a time, with the residues after it cut out of the order."""
    row, types = xlnet_ids(vocab, protein)
    length, residues = row.shape[1], len(protein)
    perm_mask = torch.zeros(1, length, length)
    for i in range(length):
        for j in range(residues):
            # Residue j is seen by later residues only, not by <sep> and <cls>.
            perm_mask[0, i, j] = float(not (i < residues and j < i))
    rows = []
    for i in range(residues):
        target_mapping = torch.zeros(1, 1, length)
        target_mapping[0, 0, i] = 1.0
        logits = model(
            row,
            perm_mask=perm_mask,
            target_mapping=target_mapping,
            token_type_ids=types,
        ).logits
        rows.append(log_probabilities(logits[0, 0], vocab))
    return np.stack(rows)


def left_to_right(model, vocab, protein):
    """Each residue from a row that ends before it."""
    row = [vocab.eos_id, *ids_of(vocab, protein)]
    rows = []
    for i in range(len(protein)):
        prefix = torch.tensor([row[: i + 1]])
        # This model returns log probabilities: its softmax is adaptive in general.
        rows.append(log_probabilities(model(prefix).prediction_scores[0, -1], vocab))
    return np.stack(rows)


def replaced(model, vocab, protein):
    row = torch.tensor([[vocab.cls_id, *ids_of(vocab, protein), vocab.sep_id]])
    return model(row).logits[0, 1:-1].double().numpy()


CLASSES = {
    "bert": (transformers.BertForMaskedLM, vocabulary.PROT_BERT),
    "albert": (transformers.AlbertForMaskedLM, vocabulary.PROT_ALBERT),
    "generator": (transformers.ElectraForMaskedLM, vocabulary.PROT_BERT),
    "discriminator": (transformers.ElectraForPreTraining, vocabulary.PROT_BERT),
    "t5": (transformers.T5ForConditionalGeneration, vocabulary.PROT_T5),
    "xlnet": (transformers.XLNetLMHeadModel, vocabulary.PROT_XLNET),
    "transformer_xl": (transformers.TransfoXLLMHeadModel, vocabulary.PROT_TXL),
}


@torch.no_grad()
def main():
    expected = {}
    for name, (kind, vocab) in CLASSES.items():
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder) / "model"
            score_cases.write_model(place, name)
            model = kind.from_pretrained(place).eval()
            for k, protein in enumerate(score_cases.PROTEINS):
                key = f"{name}/{{}}/{k}".format
                if name in ("bert", "albert", "generator"):
                    pair = masked_lm(model, vocab, protein)
                    expected[key("masked")], expected[key("one pass")] = pair
                elif name == "t5":
                    pair = denoising(model, vocab, protein)
                    expected[key("denoising")], expected[key("one pass")] = pair
                    expected[key("spans")] = spans(model, vocab, protein)
                elif name == "xlnet":
                    expected[key("permutation")] = permutation(model, vocab, protein)
                    expected[key("left-to-right")] = xlnet_left_to_right(
                        model, vocab, protein
                    )
                elif name == "transformer_xl":
                    expected[key("left-to-right")] = left_to_right(
                        model, vocab, protein
                    )
                else:
                    expected[key("replaced")] = replaced(model, vocab, protein)
    np.savez_compressed(
        OUTPUT, **{key: value.astype(np.float32) for key, value in expected.items()}
    )
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes, {len(expected)} arrays")


if __name__ == "__main__":
    main()
