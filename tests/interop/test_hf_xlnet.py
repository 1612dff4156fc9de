"""XLNet against Hugging Face's numbers: stored in ../shared, and computed anew."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases.hf_cases import SIZES, random_params
from prottrans_jax.interop import hf_xlnet, layer_stacks, safetensors
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import xlnet
from prottrans_jax.objectives import losses

MAX_ABS = 2e-5
RELATIVE = 1e-5  # of losses, and of gradients to the largest of their array
SCAN = pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "unrolled"])


def load(folder, **options):
    compute = compute_config.ComputeConfig(**options)
    attributes = json.loads((folder / "config.json").read_text())
    config = hf_xlnet.config_from_hf(attributes)
    checkpoint = safetensors.load(folder / "model.safetensors")
    params = layer_stacks.convert(
        hf_xlnet.params_from_hf(checkpoint, config),
        dtype=compute.param_dtype,
        stacked=compute.scan_layers,
    )
    return xlnet.XLNet(config, compute), params


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, tokens, inputs):
    """Hidden states [layers + 1, batch, length, d_model], logits, memories."""
    out, variables = model.apply(
        {"params": params},
        tokens,
        deterministic=True,
        mutable="intermediates",
        **inputs,
    )
    tree = variables["intermediates"]["encoder"]
    if model.compute.scan_layers:
        states = tree["layers"]["input"][0]
    else:
        layers = range(model.config.num_layers)
        states = jnp.stack([tree[f"layers_{i}"]["input"][0] for i in layers])
    return jnp.concatenate([states, tree["output"][0][None]]), *out


def assert_close(ours, theirs, **options):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=MAX_ABS, **options)


@SCAN
@pytest.mark.parametrize("name", ["forward", "forward_segments"])
def test_hidden_states_and_logits_with_left_padding(shared, name, scan_layers):
    folder = shared / "parity" / "dev" / "xlnet"
    model, params = load(folder / "lm", scan_layers=scan_layers)
    case = dict(np.load(folder / f"case_{name}.npz"))
    inputs = {"segment_ids": case["in_attention_mask"].astype(np.int32)}
    if "in_token_type_ids" in case:
        inputs["token_types"] = case["in_token_type_ids"]
    states, logits, _ = run(model, params, case["in_input_ids"], inputs)
    real = case["in_attention_mask"] == 1
    assert not real[2:, 0].any()  # padding on the left
    assert_close(states[:, real], case["out_hidden_states"][:, real])
    assert_close(logits[real], case["out_logits"][real])


def test_prot_xlnet_hidden_states_and_logits(shared):
    folder = shared / "data" / "interop" / "hf_tiny" / "prot_xlnet"
    model, params = load(folder)
    case = np.load(folder / "expected.npz")
    segments = case["attention_mask"].astype(np.int32)
    states, logits, _ = run(model, params, case["input_ids"], {"segment_ids": segments})
    real = segments == 1
    for layer, state in enumerate(states):
        assert_close(state[real], case[f"hidden_{layer}"][real])
    assert_close(logits[real], case["logits"][real])
    _, logits, _ = run(
        model,
        params,
        case["input_ids"],
        {
            "segment_ids": segments,
            "perm_mask": case["perm_mask"],
            "target_mapping": case["target_mapping"],
        },
    )
    assert_close(logits, case["perm_logits"])


def test_memories_over_three_calls(shared):
    folder = shared / "parity" / "dev" / "xlnet"
    model, params = load(folder / "lm")
    case = np.load(folder / "case_mems.npz")
    memories = None
    first, second = case["in_input_ids_1"], case["in_input_ids_2"]
    for number, tokens in enumerate((first, second, first), 1):
        states, logits, memories = run(model, params, tokens, {"memories": memories})
        assert_close(logits, case[f"out_logits_{number}"])
        if number < 3:
            # [layers, mem_len, batch, d_model]
            theirs = np.swapaxes(case[f"out_mems_{number}"], 1, 2)
            assert_close(memories, theirs)
        if number == 2:
            assert_close(states, case["out_hidden_states_2"])


@SCAN
@pytest.mark.parametrize("name", ["plm_loss", "plm_mems_loss"])
def test_permutation_loss_and_gradients(shared, name, scan_layers):
    folder = shared / "parity" / "dev" / "xlnet"
    model, params = load(folder / "lm", scan_layers=scan_layers)
    case = dict(np.load(folder / f"case_{name}.npz"))
    inputs = {
        "perm_mask": case["in_perm_mask"],
        "target_mapping": case["in_target_mapping"],
    }
    if "in_attention_mask" in case:
        inputs["segment_ids"] = case["in_attention_mask"].astype(np.int32)
    if "in_input_ids_1" in case:
        _, _, memories = run(model, params, case["in_input_ids_1"], {})
        inputs["memories"] = memories
    tokens, labels, inputs = jax.device_put(
        (case["in_input_ids"], case["in_labels"], inputs)
    )

    @jax.jit
    def loss(params):
        logits, memories = model.apply(
            {"params": params}, tokens, deterministic=True, **inputs
        )
        nll = losses.softmax_cross_entropy(logits, labels).nll
        weights = labels != -100
        return jnp.sum(nll * weights) / jnp.sum(weights), (logits, memories)

    (value, (logits, memories)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(value, case["out_loss"], rtol=RELATIVE)
    assert_close(logits, case["out_logits"])
    if "out_mems" in case:
        assert_close(memories, np.swapaxes(case["out_mems"], 1, 2))
    if "out_g_last" in case:
        states, _, _ = run(model, params, case["in_input_ids"], inputs)
        length = case["in_input_ids"].shape[1]
        assert_close(states[-1, :, length:], case["out_g_last"])
    theirs = dict(np.load(folder / f"grads_{name}.npz"))
    check_grads(hf_xlnet.params_to_hf(grads, model.config), theirs)


def check_grads(ours, theirs):
    assert set(theirs) <= set(ours)
    unused = ("r_s_bias", "seg_embed", "mask_emb")
    for name, gradient in ours.items():
        # None for token types or the mask, where a call has no use for them.
        assert name in theirs or name.endswith(unused)
        expected = theirs.get(name, np.zeros_like(gradient))
        limit = RELATIVE * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=limit, err_msg=name)


# Below: configurations of our own, against the library.

LENGTH = 13
# Attributes, then what the call gets: padding (left), types, mems, perm, targets.
COMBINATIONS = [
    ({}, ""),
    ({"clamp_len": 4, "ff_activation": "relu"}, "padding types"),
    ({"n_head": 3, "d_head": 10, "mem_len": 9, "layer_norm_eps": 1e-5}, "mems types"),
    ({"mem_len": 7, "reuse_len": 5}, "padding mems perm targets types"),
    ({"bi_data": True, "ff_activation": "gelu_new"}, "perm targets"),
    ({"bi_data": True, "clamp_len": 6, "mem_len": 8}, "mems types"),
    # Theirs cannot add padding or an order to the causal mask.
    ({"attn_type": "uni", "ff_activation": "silu"}, "types"),
    ({"attn_type": "uni", "mem_len": 4, "same_length": True}, "mems"),
    ({"attn_type": "uni", "clamp_len": 5, "mem_len": 6}, "mems targets"),
    ({"n_layer": 3, "n_head": 1, "d_head": 30}, "perm types"),
    # transformers checks d_head * n_head == d_model, but computes with any d_head.
    ({"d_head": 7}, "padding perm targets"),
]


@pytest.mark.parametrize(
    ("attributes", "inputs"), COMBINATIONS, ids=[f"{a} {b}" for a, b in COMBINATIONS]
)
def test_own_configurations_against_transformers(attributes, inputs):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    attributes = SIZES["xlnet"] | attributes
    rng = np.random.default_rng(len(inputs) + attributes["d_head"])
    theirs = transformers.XLNetConfig(
        **{**attributes, "d_head": attributes["d_model"] // attributes["n_head"]}
    )
    object.__setattr__(theirs, "d_head", attributes["d_head"])
    theirs = transformers.XLNetLMHeadModel(theirs).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            # Attention far from uniform.
            noise = rng.normal(0.0, 0.25, parameter.shape)
            parameter.copy_(torch.tensor(noise) + (parameter == 1))
    tokens, first = rng.integers(0, 29, (2, 4, LENGTH))
    their_inputs, labels = {}, np.array(tokens)
    real = np.ones((4, LENGTH), np.int32)
    if "padding" in inputs:
        real = (np.arange(LENGTH) >= np.array([0, 3, 6, 1])[:, None]).astype(np.int32)
        their_inputs["attention_mask"] = real.astype(np.float32)
    if "types" in inputs:
        their_inputs["token_type_ids"] = rng.integers(0, 2, (4, LENGTH))
    if "perm" in inputs:
        perm = rng.random((4, LENGTH, LENGTH)) < 0.4
        their_inputs["perm_mask"] = perm.astype(np.float32)
    if "targets" in inputs:
        positions = np.array([[11, 7, 12], [5, 12, 9], [7, 6, 11], [8, 3, 2]])
        mapping = np.eye(LENGTH, dtype=np.float32)[positions]
        mapping[1, 2] = 0.0
        their_inputs["target_mapping"] = mapping
        labels = np.where(mapping.any(-1), rng.integers(0, 29, (4, 3)), -100)
    else:
        labels[real == 0] = -100
    if "mems" in inputs:
        with torch.no_grad():
            mems = theirs(torch.tensor(first), use_mems=True).mems
        their_inputs["mems"] = mems
    out = theirs(
        torch.tensor(tokens),
        labels=torch.tensor(labels),
        use_mems=bool(theirs.config.mem_len),
        output_hidden_states=True,
        **{
            name: x if name == "mems" else torch.tensor(x)
            for name, x in their_inputs.items()
        },
    )
    out.loss.backward()

    config = hf_xlnet.config_from_hf(
        {**theirs.config.to_dict(), "d_head": attributes["d_head"]}
    )
    model = xlnet.XLNet(config)
    checkpoint = {name: x.numpy() for name, x in theirs.state_dict().items()}
    params = layer_stacks.stack(hf_xlnet.params_from_hf(checkpoint, config))
    again = hf_xlnet.params_to_hf(params, config)
    assert set(checkpoint) - set(again) == {"lm_loss.weight"}  # tied
    assert all(np.array_equal(x, checkpoint[name]) for name, x in again.items())
    our_inputs = {
        ours: their_inputs[name]
        for name, ours in (
            ("token_type_ids", "token_types"),
            ("perm_mask", "perm_mask"),
            ("target_mapping", "target_mapping"),
        )
        if name in their_inputs
    }
    our_inputs["segment_ids"] = real
    if "mems" in inputs:
        _, _, our_inputs["memories"] = run(model, params, first, {})
    used = labels != -100

    @jax.jit
    def loss(params):
        states, logits, memories = run.__wrapped__(
            model, params, *jax.device_put((tokens, our_inputs))
        )
        nll = losses.softmax_cross_entropy(logits, jnp.asarray(labels)).nll
        return jnp.sum(nll * used) / jnp.sum(used), (states, logits, memories)

    (value, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params)
    states, logits, memories = outputs
    np.testing.assert_allclose(value, out.loss.item(), rtol=RELATIVE)
    assert_close(logits[used], out.logits.detach()[used])
    content = out.hidden_states
    if "targets" in inputs:
        content, queries = content[0::2], content[1::2]
        for ours, expected in zip(states[:, :, LENGTH:], queries, strict=True):
            assert_close(ours[used], expected.detach()[used])
    for ours, expected in zip(states[:, :, :LENGTH], content, strict=True):
        assert_close(ours[real == 1], expected.detach()[real == 1])
    if theirs.config.mem_len:
        for ours, expected in zip(memories, out.mems, strict=True):
            # The first row: memories of padding differ, as the states do.
            assert_close(ours[0], expected[:, 0].detach())
    expected = {
        name: x.grad.numpy()
        for name, x in theirs.named_parameters()
        if x.grad is not None
    }
    check_grads(hf_xlnet.params_to_hf(grads, model.config), expected)


# Below: without ../shared and without the library.


def test_missing_fields_get_defaults_and_no_memories():
    config = hf_xlnet.config_from_hf({"d_model": 32, "n_head": 4, "mem_len": None})
    assert (config.head_dim, config.num_layers, config.vocab_size) == (8, 24, 32000)
    assert (config.mem_length, config.activation) == (0, "gelu_exact")
    assert config.attn_type == "bi" and not config.bi_data
    old = hf_xlnet.config_from_hf({"n_token": 37, "hidden_size": 32, "n_head": 4})
    assert (old.vocab_size, old.d_model) == (37, 32)


def test_width_of_heads_that_transformers_cannot_hold_is_not_written():
    config = hf_xlnet.config_from_hf(SIZES["xlnet"] | {"d_head": 7})
    with pytest.raises(ValueError, match="head_dim=7"):
        hf_xlnet.config_to_hf(config)


def test_another_shape_or_table_is_refused():
    config = hf_xlnet.config_from_hf(SIZES["xlnet"])
    theirs = hf_xlnet.params_to_hf(random_params("xlnet", config), config)
    wrong = theirs | {"transformer.layer.0.rel_attn.q": np.zeros((30, 5, 7))}
    with pytest.raises(ValueError, match=r"! encoder/layers_0/attention/query/kernel"):
        hf_xlnet.params_from_hf(wrong, config)
    wrong = theirs | {"lm_loss.weight": np.zeros((29, 30))}
    with pytest.raises(ValueError, match=r"lm_loss\.weight differs from"):
        hf_xlnet.params_from_hf(wrong, config)
    tied = theirs | {"lm_loss.weight": theirs["transformer.word_embedding.weight"]}
    hf_xlnet.params_from_hf(tied, config)
