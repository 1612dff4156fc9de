"""BERT, ALBERT and ELECTRA against Hugging Face's numbers, stored in ../shared."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.interop import (
    hf_albert,
    hf_bert,
    hf_electra,
    layer_stacks,
    safetensors,
    torch_files,
)
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import albert, bert, electra
from prottrans_jax.objectives import masked_lm, replaced_token_detection

TABLES = {"bert": hf_bert, "albert": hf_albert, "electra": hf_electra}
MODELS = {
    "bert": bert.Bert,
    "albert": albert.Albert,
    "electra": electra.ElectraEncoder,
}
VARIANTS = {
    "scanned": {"scan_layers": True},
    "unrolled": {"scan_layers": False},
    "blockwise": {"attention": "blockwise", "attention_block_size": 16},
}
MAX_ABS = 2e-5
LOSS_RELATIVE = 1e-6
GRADIENT_RELATIVE = 2e-6  # of the largest gradient of all parameters


def read_arrays(folder):
    path = folder / "model.safetensors"
    if path.exists():
        return safetensors.load(path)
    return torch_files.load(folder / "pytorch_model.bin")


def load(family, folder, **options):
    compute = compute_config.ComputeConfig(**options)
    table = TABLES[family]
    attributes = json.loads((folder / "config.json").read_text())
    arrays = read_arrays(folder)
    config = table.config_from_hf(attributes)
    # The heads in config.json agree with the arrays.
    assert table.fit_config(config, set(arrays)) == config
    params = layer_stacks.convert(
        table.params_from_hf(arrays, config),
        dtype=compute.param_dtype,
        stacked=compute.scan_layers,
    )
    return MODELS[family](config, compute), params


def run(model, params, tokens, mask, token_types=None):
    """Outputs, and hidden states [layers + 1, batch, length, d_model]."""
    outputs, variables = jax.jit(
        lambda params: model.apply(
            {"params": params},
            jnp.asarray(tokens, jnp.int32),
            segment_ids=jnp.asarray(mask, jnp.int32),
            token_types=token_types,
            mutable="intermediates",
        )
    )(params)
    encoder = variables["intermediates"]["encoder"]
    if "layers" in encoder:
        inputs = encoder["layers"]["input"][0]
    elif "layer" in encoder:  # shared: [layers, ...] if scanned, else one by one
        inputs = encoder["layer"]["input"]
        inputs = inputs[0] if model.compute.scan_layers else inputs
    else:
        inputs = [
            encoder[f"layers_{i}"]["input"][0] for i in range(model.config.num_layers)
        ]
    assert np.array_equal(outputs.encoded, encoder["output"][0])
    return outputs, np.stack([*inputs, outputs.encoded])


def assert_close(ours, theirs, real):
    np.testing.assert_allclose(
        np.asarray(ours)[..., real, :] if ours.ndim > real.ndim else ours[real],
        np.asarray(theirs)[..., real, :] if ours.ndim > real.ndim else theirs[real],
        rtol=0,
        atol=MAX_ABS,
    )


FORWARD_CASES = [
    ("bert", "pretraining", "forward", "scanned"),
    ("bert", "pretraining", "forward_no_type_ids", "unrolled"),
    ("bert", "pretraining", "forward", "blockwise"),
    ("albert", "pretraining", "forward", "scanned"),
    ("albert", "pretraining", "forward", "unrolled"),
    ("electra", "generator", "generator_forward", "scanned"),
    ("electra", "discriminator", "discriminator_forward", "unrolled"),
]


@pytest.mark.parametrize(("family", "checkpoint", "name", "variant"), FORWARD_CASES)
def test_hidden_states_and_heads(shared, family, checkpoint, name, variant):
    folder = shared / "parity" / "dev" / family
    model, params = load(family, folder / checkpoint, **VARIANTS[variant])
    case = np.load(folder / f"case_{name}.npz")
    token_types = case.get("in_token_type_ids")
    outputs, hidden = run(
        model,
        params,
        case["in_input_ids"],
        case["in_attention_mask"],
        None if token_types is None else jnp.asarray(token_types),
    )
    real = case["in_attention_mask"].astype(bool)
    assert_close(hidden, case["out_hidden_states"], real)
    if family == "electra":
        ours = outputs.logits if checkpoint == "generator" else outputs.replaced_logits
        assert_close(ours, case["out_logits"], real)
        return
    assert_close(outputs.logits, case["out_prediction_logits"], real)
    order = {"bert": "out_seq_relationship_logits", "albert": "out_sop_logits"}
    for ours, theirs in (
        (outputs.pooled, case["out_pooler_output"]),
        (outputs.order_logits, case[order[family]]),
    ):
        np.testing.assert_allclose(ours[:, 0], theirs, rtol=0, atol=MAX_ABS)


TINY_CASES = ["bert", "albert", "electra_generator", "electra_discriminator"]


@pytest.mark.parametrize("name", TINY_CASES)
def test_tiny_released_forms(shared, name):
    family = name.split("_")[0]
    folder = shared / "data" / "interop" / "hf_tiny" / f"prot_{name}"
    model, params = load(family, folder)
    expected = np.load(folder / "expected.npz")
    outputs, hidden = run(
        model, params, expected["input_ids"], expected["attention_mask"]
    )
    real = expected["attention_mask"].astype(bool)
    theirs = [expected[f"hidden_{i}"] for i in range(model.config.num_layers + 1)]
    assert_close(hidden, np.stack(theirs), real)
    logits = outputs.replaced_logits if outputs.logits is None else outputs.logits
    assert_close(logits, expected["logits"], real)
    # There and back, bit for bit.
    arrays = read_arrays(folder)
    back = TABLES[family].params_to_hf(params, model.config)
    assert set(back) == set(arrays)
    assert all(np.array_equal(back[x], arrays[x]) for x in arrays)


def make_batch(case):
    """The batch that the objectives read from a case of masked tokens."""
    labels, tokens = case["in_labels"], case["in_input_ids"]
    predicted = labels != -100
    first = np.zeros(tokens.shape, np.int32)
    first[:, 0] = 1
    order = case.get("in_next_sentence_label", case.get("in_sentence_order_label"))
    batch = {
        "input_tokens": tokens,
        "target_tokens": np.where(predicted, labels, tokens),
        "corrupted": predicted,
        "segment_ids": case["in_attention_mask"],
        "positions": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
        "token_types": case.get("in_token_type_ids", np.zeros_like(tokens)),
        "order_targets": first * (0 if order is None else order[:, None]),
    }
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
    batch["loss_weights"] = jnp.asarray(predicted, jnp.float32)
    batch["order_weights"] = jnp.asarray(first, jnp.float32)
    return batch


def loss_and_grads(objective, params, batch):
    normalizers = objective.normalizers(batch)
    rng = jax.random.key(0)

    def loss(params):
        return objective(params, batch, normalizers, (), rng, train=False)[0]

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_gradients_close(ours, theirs):
    assert set(ours) == set(theirs)
    # That of a key's bias is 0 in truth: softmax does not see it. So the limit goes
    # with the largest gradient of the model.
    limit = GRADIENT_RELATIVE * max(np.abs(theirs[name]).max() for name in theirs)
    for name in theirs:
        np.testing.assert_allclose(
            ours[name], theirs[name], rtol=0, atol=limit, err_msg=name
        )


LOSS_CASES = [
    ("bert", "pretraining", "mlm_nsp_loss", "scanned"),
    ("bert", "mlm", "mlm_loss", "blockwise"),
    ("albert", "pretraining", "mlm_sop_loss", "scanned"),
    ("albert", "mlm", "mlm_loss", "unrolled"),
    ("electra", "generator", "generator_mlm_loss", "scanned"),
]


@pytest.mark.parametrize(("family", "checkpoint", "name", "variant"), LOSS_CASES)
def test_loss_and_gradients(shared, family, checkpoint, name, variant):
    folder = shared / "parity" / "dev" / family
    model, params = load(family, folder / checkpoint, **VARIANTS[variant])
    case = np.load(folder / f"case_{name}.npz")
    objective = masked_lm.MaskedLM(
        model,
        sentence_order_weight=float(getattr(model.config, "order_head", False)),
    )
    loss, grads = loss_and_grads(objective, params, make_batch(case))
    np.testing.assert_allclose(loss, case["out_loss"], rtol=LOSS_RELATIVE)
    ours = TABLES[family].params_to_hf(grads, model.config)
    assert_gradients_close(ours, np.load(folder / f"grads_{name}.npz"))


def test_discriminator_loss_and_gradients(shared, monkeypatch):
    """The discriminator's half of the joint objective, its draws being the case's.

    The generator reads every token as the case has it and predicts those that were
    replaced; what it would draw is put there by hand.
    """
    folder = shared / "parity" / "dev" / "electra"
    model, params = load("electra", folder / "discriminator")
    case = np.load(folder / "case_discriminator_rtd_loss.npz")
    tokens = jnp.asarray(case["in_input_ids"], jnp.int32)
    real = case["in_attention_mask"] == 1
    replaced = (case["in_labels"] == 1) & real
    joint = electra.ElectraConfig(
        **{
            x: getattr(model.config, x) for x in ("vocab_size", "max_length", "d_embed")
        },
        **{
            x: getattr(model.config, x) for x in ("num_layers", "num_heads", "head_dim")
        },
        **{x: getattr(model.config, x) for x in ("d_model", "d_ff")},
        generator_num_layers=1,
        generator_num_heads=1,
        generator_head_dim=3,
        generator_d_model=5,
        generator_d_ff=7,
    )
    init = jax.jit(electra.init_params, static_argnums=0)
    generator = init(joint.generator, jax.random.key(1))
    generator["embeddings"] = params["embeddings"]
    batch = {
        "input_tokens": tokens,
        # Any other token will do: the loss sees only that it differs.
        "target_tokens": jnp.where(
            replaced, (tokens + 1) % model.config.vocab_size, tokens
        ),
        "loss_weights": jnp.asarray(replaced, jnp.float32),
        "corrupted": jnp.asarray(replaced, jnp.int32),
        "segment_ids": jnp.asarray(real, jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
        "token_types": jnp.zeros_like(tokens),
    }
    monkeypatch.setattr(
        replaced_token_detection, "draw_tokens", lambda rng, logits, targets: tokens
    )
    objective = replaced_token_detection.ReplacedTokenDetection(electra.Electra(joint))
    joint_params = electra.join_params(generator, params)
    normalizers = objective.normalizers(batch)
    rng = jax.random.key(0)

    def losses(params):
        loss, (metrics, _) = objective(params, batch, normalizers, (), rng, train=False)
        return loss, metrics

    (loss, metrics), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(
        joint_params
    )
    mean = metrics["discriminator_loss"][0] / metrics["discriminator_loss"][1]
    np.testing.assert_allclose(mean, case["out_loss"], rtol=LOSS_RELATIVE)
    generator_mean = metrics["generator_loss"][0] / metrics["generator_loss"][1]
    np.testing.assert_allclose(loss, generator_mean + 50 * mean, rtol=LOSS_RELATIVE)
    # Embeddings have a gradient from both sides: compare the rest.
    theirs = np.load(folder / "grads_discriminator_rtd_loss.npz")
    _, ours = electra.split_params(grads)
    ours = hf_electra.params_to_hf(jax.tree.map(lambda x: x / 50, ours), model.config)
    names = [name for name in theirs if ".embeddings." not in name]
    assert_gradients_close(
        {name: ours[name] for name in names}, {name: theirs[name] for name in names}
    )
