"""Encoders agree with Hugging Face; vectors do not depend on the batch."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prottrans_jax
from prottrans_jax.embed import batching, embedder, forward
from prottrans_jax.kernels import softmax_attention
from prottrans_jax.models import bert, xlnet

# float32 against torch's, some 30 roundings.
MAX_ABS = 2e-5


def test_hidden_states_are_those_of_hugging_face(shared):
    folder = shared / "data/interop/hf_tiny/prot_t5"
    expected = np.load(folder / "expected.npz")
    encoder = prottrans_jax.load_encoder(folder, dtype="float32")
    mask = expected["attention_mask"].astype(bool)
    sequences = [
        encoder.vocabulary.decode(row[real])
        for row, real in zip(expected["input_ids"], mask, strict=True)
    ]
    tokens, ours = encoder.tokenize(sequences)
    np.testing.assert_array_equal(tokens, expected["input_ids"])
    np.testing.assert_array_equal(ours, mask)
    every = encoder.embed(sequences, layers="all")
    last = encoder.embed(sequences)
    for row, sequence in enumerate(sequences):
        size = len(sequence)
        for layer in range(4):
            reference = expected[f"encoder_hidden_{layer}"][row, :size]
            limit = max(MAX_ABS, 4e-6 * np.abs(reference).max())
            np.testing.assert_allclose(every[row][layer], reference, rtol=0, atol=limit)
        reference = expected["encoder_last_hidden_state"][row, :size]
        np.testing.assert_allclose(last[row], reference, rtol=0, atol=MAX_ABS)


def test_pooling_is_the_mean_over_residues_alone(encoder):
    sequences = ["MKTAYIAKQR", "ACD", "W"]
    pooled = encoder.embed(sequences, pool="mean")
    assert pooled.shape == (3, 12) and pooled.dtype == np.float32
    tokens, mask = encoder.tokenize(sequences)
    hidden = np.asarray(encoder(tokens, mask))
    for row, sequence in enumerate(sequences):
        # One token more than residues: </s> is real to the model, but no residue.
        assert mask[row].sum() == len(sequence) + 1
        by_hand = hidden[row, : len(sequence)].mean(axis=0)
        np.testing.assert_allclose(pooled[row], by_hand, rtol=0, atol=1e-6)
    largest = encoder.embed(sequences, pool="max")
    np.testing.assert_allclose(largest[1], hidden[1, :3].max(axis=0), atol=1e-6)


def run(encoder, sequences, members, rows, length):
    runner = encoder.make_embedder()
    residues = [sequences[i].encode() for i in members]
    lengths = [len(x) + runner.tokens.num_special for x in residues]
    batch = batching.one_each(members, lengths, rows=rows, length=length)
    work = embedder.Work(batch, residues)
    return {i: np.array(embedding.residues) for _, i, embedding in runner.run([work])}


def test_same_vector_alone_in_a_batch_and_in_another_order(encoder):
    sequences = ["MKTAYIAKQR", "ACDWWY", "GGGGGGGGGGGGGGGG", "LLKM"]
    together = run(encoder, sequences, (0, 1, 2, 3), 4, 24)
    turned = run(encoder, sequences, (3, 2, 1, 0), 4, 24)
    for i in range(4):
        alone = run(encoder, sequences, (i,), 4, 24)
        np.testing.assert_array_equal(alone[i], together[i])
        np.testing.assert_array_equal(turned[i], together[i])


def test_same_vector_in_another_bucket(encoder):
    sequence = "MKTAYIAKQRLLKMACDWWY"
    results = [
        run(encoder, [sequence], (0,), rows, length)[0]
        for rows, length in ((1, 21), (1, 24), (3, 32), (2, 200))
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=0, atol=1e-5)


def test_call_is_pure_jittable_differentiable_and_vmappable(encoder):
    tokens, mask = encoder.tokenize(["MKTAY", "ACD"])
    plain = encoder(tokens, mask)
    jitted = jax.jit(encoder.apply)(encoder.params, tokens, mask)
    np.testing.assert_allclose(jitted, plain, atol=1e-5)
    mapped = jax.vmap(lambda t, m: encoder(t[None], m[None])[0])(
        jnp.asarray(tokens), jnp.asarray(mask)
    )
    np.testing.assert_allclose(mapped, plain, atol=1e-5)
    gradient = jax.grad(
        lambda params: jnp.sum(encoder.apply(params, tokens, mask)[:, 0] ** 2)
    )(encoder.params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient))


def test_encoder_holds_neither_decoder_nor_optimizer(encoder):
    assert set(encoder.params) == {"encoder", "token_embedder"}


def test_whole_model_gives_logits(shared):
    folder = shared / "data/interop/hf_tiny/prot_t5"
    expected = np.load(folder / "expected.npz")
    model = prottrans_jax.load_model(folder, dtype="float32")
    logits = model(
        jnp.asarray(expected["input_ids"]),
        jnp.asarray(expected["decoder_input_ids"]),
        encoder_segment_ids=jnp.asarray(expected["attention_mask"]),
    )
    real = expected["labels"] != -100
    np.testing.assert_allclose(
        np.asarray(logits)[real], expected["logits"][real], rtol=0, atol=1e-4
    )


def test_stream_keeps_order_and_ids(encoder):
    proteins = [("b", "MKTAY"), ("a", "W"), ("c", "ACDEFGH")]
    streamed = list(encoder.stream(iter(proteins), window=2))
    assert [name for name, _ in streamed] == ["b", "a", "c"]
    for (_, vectors), (_, sequence) in zip(streamed, proteins, strict=True):
        np.testing.assert_allclose(vectors, encoder.embed([sequence])[0], atol=1e-5)


def test_weights_go_to_a_device_once_and_only_where_they_are_used(encoder, monkeypatch):
    placed = []
    put = jax.device_put

    def note(x, device=None, **options):
        if x is encoder.params:
            placed.append(device)
        return put(x, device, **options)

    monkeypatch.setattr(jax, "device_put", note)
    encoder = dataclasses.replace(encoder)  # Nothing placed yet.
    devices = jax.devices()[:3]
    for _ in range(2):
        runner = encoder.make_embedder(devices=devices, max_tokens=16)
        work = runner.work([b"MKTAYIAKQR", b"ACDWWYLLKM"], np.array([16]))
        assert len(work) == 2
        assert len(list(runner.run(work))) == 2
    assert placed == devices[1:2]  # They are on the first already.


def test_windows_of_a_stream_share_their_programs(encoder, monkeypatch):
    """Other padded lengths in each window would be compiled again."""
    shapes = []

    def note(module, params, tokens, *args):
        shapes.append(tokens.shape)
        return run(module, params, tokens, *args)

    run = forward.run
    monkeypatch.setattr(forward, "run", note)
    proteins = [(str(i), "M" * (40 - 7 * i)) for i in range(6)]
    assert len(list(encoder.stream(proteins, window=2, max_tokens=96))) == 6
    assert shapes == [(2, 48)] * 3


def test_stream_names_the_protein_that_is_wrong(encoder):
    with pytest.raises(ValueError, match="protein 'second'"):
        list(encoder.stream([("first", "MK"), ("second", "M-1")], window=5))


def test_a_batch_that_does_not_fit_is_halved_until_it_does(encoder, monkeypatch):
    sequences = [b"MKTAY", b"ACD", b"WWWW", b"GG", b"LLKM", b"PPPP", b"Y"]
    runner = encoder.make_embedder()
    expected = {
        i: embedding.residues
        for _, i, embedding in runner.run(runner.work(sequences, np.array([8])))
    }
    seen = []
    run = forward.run

    def full_at_two_rows(module, params, tokens, segments, spec):
        seen.append(tokens.shape[0])
        if tokens.shape[0] > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return run(module, params, tokens, segments, spec)

    small = encoder.make_embedder()
    monkeypatch.setattr(forward, "run", full_at_two_rows)
    results = list(small.run(small.work(sequences, np.array([8]))))
    assert sorted(i for _, i, _ in results) == list(range(7))
    assert max(seen) > 2 and seen.count(max(seen)) == 1  # Not tried again.
    for _, i, embedding in results:
        np.testing.assert_allclose(embedding.residues, expected[i], atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_one_sequence_that_does_not_fit_goes_blockwise_then_is_named(
    fused, encoder, monkeypatch
):
    runner = encoder.make_embedder()
    modes = []

    def never_fits(module, *_):
        modes.append((module.compute.fused_attention, module.compute.attention))
        raise RuntimeError("RESOURCE_EXHAUSTED: no")

    if fused:
        monkeypatch.setattr(forward, "for_shape", lambda x, *_: forward.fused(x))
    monkeypatch.setattr(forward, "run", never_fits)
    with pytest.raises(embedder.OutOfMemory, match="5 residues"):
        list(runner.run(runner.work([b"MKTAY"], np.array([8]))))
    assert modes == [(fused, "plain"), (False, "blockwise")]


def test_a_gpu_uses_its_fused_attention_where_family_and_length_allow(
    encoder, monkeypatch
):
    xlnet_config = xlnet.XLNetConfig(
        vocab_size=37, num_layers=1, num_heads=2, head_dim=8, d_model=16, d_ff=24
    )
    bert_config = bert.BertConfig(
        vocab_size=30,
        num_layers=2,
        num_heads=2,
        head_dim=8,
        d_model=16,
        d_ff=24,
        max_length=40,
    )
    modules = encoder.module, bert.Bert(bert_config), xlnet.XLNet(xlnet_config)
    heads = encoder.config.num_heads
    limit = forward.PLAIN_SCORES_BYTES["accelerator"]
    longest = int((limit / 4 / heads) ** 0.5)

    def choice(module, length=40, platform="gpu"):
        compute = forward.for_shape(module, 2, length, platform).compute
        return "fused" if compute.fused_attention else compute.attention

    monkeypatch.setattr(softmax_attention, "has_fused", lambda dtype, head_dim: True)
    assert [choice(x) for x in modules] == ["fused", "fused", "plain"]
    assert [choice(x, platform="cpu") for x in modules] == ["plain"] * 3
    assert [choice(x, platform="tpu") for x in modules] == ["plain"] * 3
    # Of one row: two rows' plain scores would already be too many.
    assert choice(encoder.module, longest) == "fused"
    assert choice(encoder.module, longest + 1) == "blockwise"
    assert choice(forward.blockwise(encoder.module)) == "blockwise"  # As configured.
    monkeypatch.setattr(softmax_attention, "has_fused", lambda dtype, head_dim: False)
    assert [choice(x) for x in modules] == ["plain"] * 3


def test_fused_attention_gives_the_same_vectors(encoder, monkeypatch):
    """Uses JAX's float32 reference instead of the GPU's kernel."""
    monkeypatch.setattr(softmax_attention, "FUSED_IMPLEMENTATION", "xla")
    sequences = [b"MKTAYIAKQR", b"ACDWWY", b"LL"]
    runner = encoder.make_embedder()
    fused = encoder.make_embedder()
    fused.module = forward.fused(encoder.module)
    plain, flash = (
        {i: x.residues for _, i, x in r.run(r.work(sequences, np.array([12])))}
        for r in (runner, fused)
    )
    for i in range(3):
        np.testing.assert_allclose(flash[i], plain[i], rtol=0, atol=1e-5)


def test_unknown_model_settings_are_named(model_folder):
    with pytest.raises(ValueError, match=r"^depth: T5Config has no such field. It has"):
        prottrans_jax.load_encoder(model_folder, depth=3)


def test_fused_attention_cannot_be_set_by_users(encoder, model_folder):
    """Packed rows would leak into each other."""
    with pytest.raises(ValueError, match=r"^fused_attention: T5Config has no such"):
        prottrans_jax.load_encoder(model_folder, fused_attention=True)
    fused = forward.fused(encoder.module)
    assert fused.compute.fused_attention and not encoder.module.compute.fused_attention
    tokens = jnp.ones((1, 4), jnp.int32)
    with pytest.raises(ValueError, match=r"fused_attention=True: rows .* packed"):
        fused.apply(
            {"params": encoder.params},
            tokens,
            tokens,
            encoder_segment_ids=tokens,
            deterministic=True,
        )


def test_blockwise_is_plain_attention(encoder):
    sequence = "MKTAYIAKQRACDEFGHIKL" * 40
    tokens, mask = encoder.tokenize([sequence])
    plain = encoder(tokens, mask)
    module = forward.blockwise(encoder.module)
    blocks = forward.encode(module, encoder.params, tokens, mask, forward.Layers())
    np.testing.assert_allclose(blocks, plain, rtol=0, atol=1e-5)
    # As the embedder does it, layer by layer.
    spec = forward.OutputSpec(forward.Layers(), None, True, 0, 0)
    segments = mask.astype(np.int32)
    layered, _ = forward.run(module, encoder.params, tokens, segments, spec)
    np.testing.assert_allclose(layered, plain, rtol=0, atol=1e-5)


def test_repr_of_encoder_and_model_is_one_line(encoder):
    assert repr(encoder) == "Encoder('tiny_t5', T5, 3 layers, d_model 12, float32)"
    assert repr(prottrans_jax.load_model(encoder.source)) == "Model('tiny_t5', T5)"
    names = {"Encoder", "Model", "load_encoder", "load_model", "__version__"}
    assert names <= set(dir(prottrans_jax))
    assert isinstance(encoder, prottrans_jax.Encoder)


@pytest.mark.parametrize(
    ("layers", "message"), [(7, "layer 7"), ("last9", "layer -9"), ("first", "first")]
)
def test_unknown_layers_are_refused(encoder, layers, message):
    with pytest.raises(ValueError, match=message):
        encoder.embed(["MK"], layers=layers)


def test_other_mistakes_are_explained(encoder):
    for method in (encoder.embed, encoder.tokenize, encoder.attention_maps):
        with pytest.raises(ValueError, match=r"list of sequences.*proteins.values"):
            method({"protein": "MKT"})
    with pytest.raises(ValueError, match=r"tokenize takes a list .* \[sequence\]"):
        encoder.tokenize("MKT")
    with pytest.raises(ValueError, match=r"pairs, not a dict: pass its items\(\)"):
        next(encoder.stream({"protein": "MKT"}))
    with pytest.raises(ValueError, match=r"sequence 1: .*position 2"):
        encoder.embed(["MKTAY", "MK1"])
    with pytest.raises(ValueError, match=r"no \[CLS\] token"):
        encoder.embed(["MKTAY"], pool="cls")
    with pytest.raises(FileNotFoundError, match="prot_bert"):
        prottrans_jax.load_encoder("prot_brt")


def test_sequences_longer_than_the_position_table_are_named(shared):
    folder = shared / "data/interop/hf_tiny/prot_bert"
    encoder = prottrans_jax.load_encoder(folder, dtype="float32")
    with pytest.raises(ValueError, match=r"sequence 1 has 127 residues.* 126"):
        encoder.embed(["MK", "M" * 127])


def test_attention_is_plain_or_blockwise_by_length_whatever_the_rows(
    encoder, monkeypatch
):
    """The two sum in different orders, so the choice must not depend on the batch."""
    seen = []
    monkeypatch.setitem(forward.PLAIN_SCORES_BYTES, "cpu", 4 * 2 * 2 * 24 * 24)

    def note(module, *args, **keywords):
        seen.append((args[1].shape, module.compute.attention))
        return run(module, *args, **keywords)

    run = forward.run
    monkeypatch.setattr(forward, "run", note)
    for number in (1, 4):
        encoder.embed(["M" * 23] * number, max_tokens=96)
        encoder.embed(["M" * 7] * number, max_tokens=96)
    assert {shape[0] for shape, _ in seen} == {1, 4}
    ways = {
        length: {way for shape, way in seen if shape[1] == length} for length in (8, 24)
    }
    assert ways == {8: {"plain"}, 24: {"blockwise"}}


def test_rare_letters_are_x_in_either_case(encoder):
    whole, rare = encoder.embed(["MXXXXXK", "mUZOBJk"])
    np.testing.assert_array_equal(whole, rare)


def test_importing_the_package_is_lazy():
    code = (
        "import sys, prottrans_jax; assert 'jax' not in sys.modules; "
        "prottrans_jax.load_encoder; "
        "bad = {'tensorflow', 'seqio', 'torch', 'gin', 'h5py'} & set(sys.modules); "
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
