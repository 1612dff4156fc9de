"""Makes expected.json: greedy continuations by Hugging Face, of tiny random models.

  python tests/generation/make_expected.py SHARED t5 xlnet
  python tests/generation/make_expected.py SHARED transformer_xl

In environments with torch and transformers; for Transformer-XL transformers 4.37.2, the
last version that runs it. SHARED is the folder of test data, see tests/conftest.py.
"""

import json
import pathlib
import sys

import torch
import transformers

FILE = pathlib.Path(__file__).with_name("expected.json")
NEW_TOKENS = 24
# Without it random models repeat one residue.
NGRAM = 3
NEVER = -1


def causal(model, prompt, residues, **options):
    allowed = set(residues)
    vocab = model.config.vocab_size
    out = model.generate(
        torch.tensor([prompt]),
        do_sample=False,
        no_repeat_ngram_size=NGRAM,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        suppress_tokens=[i for i in range(vocab) if i not in allowed],
        eos_token_id=NEVER,
        pad_token_id=0,
        **options,
    )
    return out[0, -NEW_TOKENS:].tolist()


def make_t5(shared):
    folder = shared / "data/interop/hf_tiny/prot_t5"
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    # M K T, masks, A; then all masks but two: ids of ProtT5, its first sentinel 127.
    inputs = [[19, 14, 11, 127, 127, 3, 1], [127, 19, 127, 127, 20, 127, 127, 127, 1]]
    allowed = [1, *range(3, 23)]
    outputs = []
    for ids in inputs:
        out = model.generate(
            torch.tensor([ids]),
            do_sample=False,
            no_repeat_ngram_size=NGRAM,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=3,
            suppress_tokens=[i for i in range(128) if i not in allowed],
        )
        outputs.append(out[0, 1:].tolist())
    return {"inputs": inputs, "outputs": outputs}


class OneOrder(transformers.XLNetLMHeadModel):
    """Sees the prompt both ways, and what follows from left to right."""

    prompt_length = 0

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        length = inputs["input_ids"].shape[1]
        hidden = torch.ones(
            length, length
        ).triu()  # 1: the row must not see the column.
        hidden[:, : self.prompt_length] = 0
        inputs["perm_mask"] = hidden[None].expand(len(input_ids), -1, -1)
        return inputs


def make_xlnet(shared):
    folder = shared / "data/interop/hf_tiny/prot_xlnet"
    prompts = [[33, 24, 27], [33, 17, 30, 30, 22, 25, 24]]
    residues = range(17, 37)
    result = {"prompts": prompts}
    for attn_type in ("uni", "bi"):
        outputs = []
        for prompt in prompts:
            kind = OneOrder if attn_type == "bi" else transformers.XLNetLMHeadModel
            model = kind.from_pretrained(folder, attn_type=attn_type, mem_len=0).eval()
            model.prompt_length = len(prompt)
            outputs.append(causal(model, prompt, residues, use_mems=False))
        result[attn_type] = outputs
    return result


def make_transformer_xl(shared):
    folder = shared / "parity/dev/transfo_xl/lm"
    # Without memories, which begin as zeros that are attended to.
    model = transformers.TransfoXLLMHeadModel.from_pretrained(folder, mem_len=0).eval()
    prompts = [[1, 5, 9], [1, 20, 3, 3, 11, 7]]
    outputs = [causal(model, prompt, range(3, 23)) for prompt in prompts]
    return {"prompts": prompts, "outputs": outputs}


MAKERS = {"t5": make_t5, "xlnet": make_xlnet, "transformer_xl": make_transformer_xl}


def main():
    shared = pathlib.Path(sys.argv[1])
    expected = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in sys.argv[2:]:
        versions = [torch.__version__, transformers.__version__]
        expected[name] = MAKERS[name](shared) | {"versions": versions}
    lines = [f"{json.dumps(k)}: {json.dumps(expected[k])}" for k in sorted(expected)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
