"""T5 of many configurations against transformers itself: states, logits, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.checkpoints import opening
from prottrans_jax.interop import hf_t5, huggingface
from prottrans_jax.objectives import denoising

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MAX_ABS = 2e-5
LOSS_RELATIVE = 1e-5
GRADIENT_RELATIVE = 2e-5  # of the largest of its parameter
BATCH, LENGTH, TARGETS, VOCAB = 3, 12, 9, 37
LENGTHS = (12, 4, 7)
# d_kv is not d_model / num_heads, sizes are odd, and no two are alike.
T5 = dict(
    vocab_size=VOCAB,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=3,
    d_kv=5,
    d_model=14,
    d_ff=22,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=10,
    dropout_rate=0.0,
    decoder_start_token_id=0,
)
# Attributes that differ, and how it is stored and read.
CASES = [
    ({}, {}),
    ({"num_decoder_layers": 3, "num_heads": 1}, {"scan_layers": False}),
    ({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, {}),
    ({"feed_forward_proj": "gated-gelu"}, {"attention": "blockwise"}),
    ({"feed_forward_proj": "gated-silu", "num_layers": 3}, {"shards": "3KB"}),
    ({"feed_forward_proj": "gated-relu", "d_kv": 2}, {"half": True}),
    ({"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}, {}),
    (
        {
            "relative_attention_num_buckets": 12,
            "relative_attention_max_distance": 7,
        },
        {"attention": "blockwise", "shards": "2KB"},
    ),
    ({"d_model": 9, "num_heads": 4, "num_decoder_layers": 1}, {"half": True}),
    ({"relative_attention_num_buckets": 32, "d_kv": 1}, {"scan_layers": False}),
]


def make_model(attributes):
    """A transformers model with random parameters."""
    config = transformers.T5Config(**{**T5, **attributes})
    # transformers 5 ties at construction whatever was asked for.
    config.tie_word_embeddings = attributes.get("tie_word_embeddings", True)
    config._attn_implementation = "eager"
    torch.manual_seed(7)
    model = transformers.T5ForConditionalGeneration(config).eval()
    # Only the table of the logits is another one, as in T5 1.1.
    model.set_input_embeddings(model.shared)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model


def make_inputs():
    rng = np.random.default_rng(3)
    mask = np.arange(LENGTH) < np.array(LENGTHS)[:, None]
    labels = rng.integers(1, VOCAB, (BATCH, TARGETS))
    labels[1, 5:] = -100
    return rng.integers(1, VOCAB, (BATCH, LENGTH)) * mask, mask, labels


def run_theirs(model):
    tokens, mask, labels = map(torch.from_numpy, make_inputs())
    out = model(
        input_ids=tokens,
        attention_mask=mask.long(),
        labels=labels,
        output_hidden_states=True,
    )
    out.loss.backward()
    return out, {n: p.grad.numpy() for n, p in model.named_parameters()}


def run_ours(checkpoint):
    tokens, mask, labels = make_inputs()
    targets = np.where(labels == -100, 0, labels).astype(np.int32)
    batch = {
        "encoder_input_tokens": tokens.astype(np.int32),
        "encoder_segment_ids": mask.astype(np.int32),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_segment_ids": np.ones_like(targets),
        "decoder_loss_weights": (labels != -100).astype(np.float32),
        "decoder_corrupted": np.zeros_like(targets),
    }
    batch = jax.tree.map(jnp.asarray, batch)
    model = opening.model_of(checkpoint)
    objective = denoising.Denoising(model)

    def loss(params):
        rng = jax.random.key(0)
        sums = objective.normalizers(batch)
        return objective(params, batch, sums, (), rng, train=False)[0]

    def forward(params):
        return model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            encoder_segment_ids=batch["encoder_segment_ids"],
            decoder_segment_ids=batch["decoder_segment_ids"],
            deterministic=True,
            mutable="intermediates",
        )

    (logits, variables), loss_and_grads = jax.jit(
        lambda params: (forward(params), jax.value_and_grad(loss)(params))
    )(checkpoint.params)
    return logits, variables["intermediates"], *loss_and_grads


def hidden_states(tree, num_layers):
    if "layers" in tree:
        inputs = list(tree["layers"]["input"][0])
    else:
        inputs = [tree[f"layers_{i}"]["input"][0] for i in range(num_layers)]
    return np.stack([*inputs, tree["output"][0]])


@pytest.mark.parametrize(("attributes", "storage"), CASES)
def test_states_logits_loss_and_gradients(tmp_path, attributes, storage):
    storage = dict(storage)
    model = make_model(attributes)
    if storage.pop("half", False):
        # Theirs in float32 again, from the rounded weights that are stored.
        model.half().save_pretrained(tmp_path)
        model.float()
    else:
        shards = storage.pop("shards", None)
        model.save_pretrained(
            tmp_path, **({"max_shard_size": shards} if shards else {})
        )
    overrides = {"scan_layers": True, "param_dtype": "float32", **storage}
    if "attention" in storage:
        overrides["attention_block_size"] = 4
    found = huggingface.read(tmp_path, **overrides)
    theirs, their_grads = run_theirs(model)
    logits, tree, loss, grads = run_ours(found)

    real = make_inputs()[1]
    for side, states, keep in (
        ("encoder", theirs.encoder_hidden_states, real),
        ("decoder", theirs.decoder_hidden_states, np.ones((BATCH, TARGETS), bool)),
    ):
        expected = np.stack([x.detach().numpy() for x in states])[:, keep]
        ours = hidden_states(tree[side], len(states) - 1)[:, keep]
        limit = max(MAX_ABS, 4e-6 * np.abs(expected).max())
        np.testing.assert_allclose(ours, expected, rtol=0, atol=limit, err_msg=side)
    expected = theirs.logits.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=MAX_ABS)
    np.testing.assert_allclose(loss, theirs.loss.item(), rtol=LOSS_RELATIVE)
    ours = hf_t5.params_to_hf(jax.tree.map(np.asarray, grads), found.config)
    assert set(ours) == set(their_grads)
    for name, expected in their_grads.items():
        limit = GRADIENT_RELATIVE * np.abs(expected).max()
        np.testing.assert_allclose(
            ours[name], expected, rtol=0, atol=limit, err_msg=name
        )
