"""BERT, ALBERT and ELECTRA of many configurations against transformers itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.checkpoints import opening
from prottrans_jax.interop import huggingface
from prottrans_jax.objectives import losses

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MAX_ABS = 2e-5
LOSS_RELATIVE = 1e-5
GRADIENT_RELATIVE = 1e-5
BATCH, LENGTH, VOCAB = 3, 11, 37
LENGTHS = (11, 4, 7)

BERT = dict(
    vocab_size=VOCAB,
    hidden_size=21,
    num_attention_heads=3,
    intermediate_size=26,
    num_hidden_layers=2,
    max_position_embeddings=13,
)
ALBERT = {**BERT, "embedding_size": 10}
ELECTRA = {**BERT, "embedding_size": 9}
# Class, attributes that differ, and how it is stored and read.
CASES = [
    ("BertForMaskedLM", {}, {}),
    ("BertForMaskedLM", {"hidden_act": "gelu_new", "num_hidden_layers": 3}, {}),
    ("BertForMaskedLM", {"tie_word_embeddings": False}, {"max_shard_size": "3KB"}),
    ("BertForMaskedLM", {"hidden_act": "relu", "layer_norm_eps": 1e-3}, {"half": True}),
    ("BertForPreTraining", {"type_vocab_size": 3}, {"attention": "blockwise"}),
    ("BertForPreTraining", {"hidden_act": "silu"}, {"scan_layers": False}),
    ("BertForPreTraining", {"hidden_size": 15, "num_attention_heads": 5}, {}),
    ("BertModel", {"num_attention_heads": 1, "type_vocab_size": 1}, {}),
    ("AlbertForMaskedLM", {}, {}),
    ("AlbertForMaskedLM", {"hidden_act": "gelu", "num_hidden_layers": 5}, {}),
    ("AlbertForMaskedLM", {"tie_word_embeddings": False}, {"max_shard_size": "3KB"}),
    ("AlbertForMaskedLM", {"hidden_act": "relu", "layer_norm_eps": 1e-3}, {}),
    ("AlbertForPreTraining", {"embedding_size": 21}, {"scan_layers": False}),
    ("AlbertForPreTraining", {"type_vocab_size": 3}, {"half": True}),
    ("AlbertForPreTraining", {"num_attention_heads": 7}, {"attention": "blockwise"}),
    ("AlbertModel", {"hidden_size": 8, "num_attention_heads": 2}, {}),
    ("ElectraForMaskedLM", {}, {}),
    ("ElectraForMaskedLM", {"embedding_size": 21}, {"scan_layers": False}),
    ("ElectraForMaskedLM", {"hidden_act": "relu"}, {"attention": "blockwise"}),
    ("ElectraForMaskedLM", {"tie_word_embeddings": False}, {"max_shard_size": "3KB"}),
    ("ElectraForPreTraining", {}, {"half": True}),
    ("ElectraForPreTraining", {"embedding_size": 21, "hidden_act": "gelu_new"}, {}),
    ("ElectraForPreTraining", {"layer_norm_eps": 1e-3, "type_vocab_size": 3}, {}),
    ("ElectraModel", {"num_hidden_layers": 3, "num_attention_heads": 7}, {}),
]


def make_model(name, attributes):
    """A transformers model with random parameters, biases and norms included."""
    family = name[: name.index("For")] if "For" in name else name.removesuffix("Model")
    sizes = {"Bert": BERT, "Albert": ALBERT, "Electra": ELECTRA}[family]
    config = getattr(transformers, f"{family}Config")(**{**sizes, **attributes})
    config._attn_implementation = "eager"
    torch.manual_seed(7)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * parameter + 0.3 * torch.randn_like(parameter))
        # If untied, transformers has two biases and adds the second to the logits.
        for side in ("cls.predictions", "predictions"):
            if f"{side}.decoder.bias" in dict(model.named_parameters()):
                head = model.get_submodule(side)
                head.bias.copy_(head.decoder.bias)
    return model


def make_inputs(num_types):
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, VOCAB, (BATCH, LENGTH))
    mask = (np.arange(LENGTH) < np.array(LENGTHS)[:, None]).astype(np.int64)
    predicted = (rng.random((BATCH, LENGTH)) < 0.3) & (mask == 1)
    return {
        "tokens": tokens,
        "mask": mask,
        "token_types": np.sort(rng.integers(0, num_types, (BATCH, LENGTH))),
        "targets": np.where(predicted, rng.integers(1, VOCAB, tokens.shape), tokens),
        "predicted": predicted,
        "order": rng.integers(0, 2, BATCH),
    }


def run_theirs(model, inputs):
    """Their outputs, and the gradients of their own loss where they have one."""
    arguments = {
        "input_ids": torch.tensor(inputs["tokens"]),
        "attention_mask": torch.tensor(inputs["mask"]),
        "token_type_ids": torch.tensor(inputs["token_types"]),
        "output_hidden_states": True,
    }
    name = type(model).__name__
    labels = np.where(inputs["predicted"], inputs["targets"], -100)
    if name == "ElectraForPreTraining":
        labels = inputs["predicted"].astype(np.int64)
    if not name.endswith("Model"):
        arguments["labels"] = torch.tensor(labels)
    if name == "BertForPreTraining":
        arguments["next_sentence_label"] = torch.tensor(inputs["order"])
    if name == "AlbertForPreTraining":
        arguments["sentence_order_label"] = torch.tensor(inputs["order"])
    outputs = model(**arguments)
    if outputs.get("loss") is not None:
        outputs.loss.backward()
    return outputs


def run_ours(checkpoint, inputs):
    """(loss, (outputs, hidden states)) and gradients, in one compilation."""
    config = checkpoint.config
    model = opening.model_of(checkpoint)
    tokens, mask = jnp.asarray(inputs["tokens"]), jnp.asarray(inputs["mask"])
    predicted = jnp.asarray(inputs["predicted"])
    targets, order_targets = jax.device_put((inputs["targets"], inputs["order"]))

    def compute(params):
        outputs, variables = model.apply(
            {"params": params},
            tokens,
            segment_ids=mask,
            token_types=jnp.asarray(inputs["token_types"]),
            mutable="intermediates",
        )
        loss = jnp.float32(0)
        if outputs.logits is not None:
            nll = losses.softmax_cross_entropy(outputs.logits, targets).nll
            loss += jnp.sum(nll * predicted) / jnp.sum(predicted)
        if outputs.order_logits is not None:
            order = outputs.order_logits[:, 0]
            loss += losses.softmax_cross_entropy(order, order_targets).nll.mean()
        if outputs.replaced_logits is not None:
            entropy = losses.sigmoid_cross_entropy(outputs.replaced_logits, predicted)
            loss += jnp.sum(entropy * mask) / jnp.sum(mask)
        return loss, (outputs, variables["intermediates"]["encoder"])

    (loss, (outputs, encoder)), grads = jax.jit(
        jax.value_and_grad(compute, has_aux=True),
        compiler_options={"xla_backend_optimization_level": 0},  # half the time
    )(checkpoint.params)
    layers = encoder.get("layer", encoder.get("layers"))
    if layers is None:
        hidden = [encoder[f"layers_{i}"]["input"][0] for i in range(config.num_layers)]
    else:
        hidden = layers["input"][0] if model.compute.scan_layers else layers["input"]
    return loss, outputs, np.stack([*hidden, outputs.encoded]), grads


@pytest.mark.parametrize(
    ("name", "attributes", "storage"),
    # Every other one in the quick run: tracing takes a second each.
    [pytest.param(*x, marks=[pytest.mark.slow] * (i % 2)) for i, x in enumerate(CASES)],
)
def test_numbers_and_files_are_those_of_transformers(
    tmp_path, name, attributes, storage
):
    storage = dict(storage)
    half, shard = storage.pop("half", False), storage.pop("max_shard_size", "1GB")
    model = make_model(name, attributes)
    if half:
        model = model.half()
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    model = model.float()
    if "attention" in storage:
        storage["attention_block_size"] = 4
    checkpoint = huggingface.read(
        tmp_path / "theirs",
        **{"param_dtype": "float32", "scan_layers": True, **storage},
    )
    assert checkpoint.stored_dtype == (np.float16 if half else np.float32)
    config = checkpoint.config

    inputs = make_inputs(config.num_token_types)
    theirs = run_theirs(model, inputs)
    loss, outputs, hidden, grads = run_ours(checkpoint, inputs)
    real = inputs["mask"] == 1

    def close(ours, expected):
        expected = expected.detach().numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=MAX_ABS)

    close(hidden[:, real], torch.stack(theirs.hidden_states)[:, real])
    for ours, key in (
        (outputs.logits, "prediction_logits" if "PreTr" in name else "logits"),
        (outputs.replaced_logits, "logits"),
    ):
        if ours is not None:
            close(ours[real], theirs[key][real])
    if outputs.order_logits is not None:
        key = "sop_logits" if "sop_logits" in theirs else "seq_relationship_logits"
        close(outputs.order_logits[:, 0], theirs[key])
    elif outputs.pooled is not None:
        close(outputs.pooled[:, 0], theirs.pooler_output)
    if theirs.get("loss") is not None:
        np.testing.assert_allclose(loss, theirs.loss.item(), rtol=LOSS_RELATIVE)
        table = checkpoint.family.table
        ours = table.params_to_hf(grads, config)
        expected = {
            key: x.grad.numpy()
            for key, x in model.named_parameters()
            # Untied, the bias of the logits that is not used.
            if x.grad is not None
        }
        limit = GRADIENT_RELATIVE * max(np.abs(x).max() for x in expected.values())
        assert set(expected) <= set(ours)
        for key, x in expected.items():
            np.testing.assert_allclose(ours[key], x, rtol=0, atol=limit, err_msg=key)

    # Back: their reader finds everything, nothing more, and equal numbers.
    huggingface.write(tmp_path / "ours", config, checkpoint.params)
    again, info = type(model).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info[x] for x in ("missing_keys", "unexpected_keys"))
    written = again.state_dict()
    assert all(torch.equal(written[x], y) for x, y in model.state_dict().items())
