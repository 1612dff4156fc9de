"""Encoders against Hugging Face's numbers, and the same vector in any company."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prottrans_jax
from prottrans_jax import frozen_params
from prottrans_jax.embed import batching, embedder, forward, layerwise
from prottrans_jax.layers import attention, x86
from prottrans_jax.models import albert, bert, electra, t5, xlnet

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
            wanted = expected[f"encoder_hidden_{layer}"][row, :size]
            limit = max(MAX_ABS, 4e-6 * np.abs(wanted).max())
            np.testing.assert_allclose(every[row][layer], wanted, rtol=0, atol=limit)
        wanted = expected["encoder_last_hidden_state"][row, :size]
        np.testing.assert_allclose(last[row], wanted, rtol=0, atol=MAX_ABS)


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


def run(encoder, sequences, batch):
    runner = encoder.make_embedder()
    work = embedder.Work(batch, [sequences[i].encode() for i in batch.members])
    return {i: np.array(found.residues) for _, i, found in runner.run([work])}


def test_same_vector_alone_in_a_batch_and_in_another_order(encoder):
    sequences = ["MKTAYIAKQR", "ACDWWY", "GGGGGGGGGGGGGGGG", "LLKM"]
    together = run(encoder, sequences, batching.Batch((0, 1, 2, 3), 4, 24))
    turned = run(encoder, sequences, batching.Batch((3, 2, 1, 0), 4, 24))
    for i in range(4):
        alone = run(encoder, sequences, batching.Batch((i,), 4, 24))
        np.testing.assert_array_equal(alone[i], together[i])
        np.testing.assert_array_equal(turned[i], together[i])


def test_same_vector_in_another_bucket(encoder):
    sequence = "MKTAYIAKQRLLKMACDWWY"
    found = [
        run(encoder, [sequence], batching.Batch((0,), rows, length))[0]
        for rows, length in ((1, 21), (1, 24), (3, 32), (2, 200))
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-5)


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
        expected["input_ids"],
        expected["decoder_input_ids"],
        encoder_segment_ids=expected["attention_mask"],
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

    def note(params, device):
        placed.append(device)
        return jax.device_put(params, device)

    monkeypatch.setattr(embedder, "_on_device", note)
    encoder = dataclasses.replace(encoder)  # Nothing placed yet.
    devices = jax.devices()[:3]
    for _ in range(2):
        runner = encoder.make_embedder(devices=devices, max_tokens=16)
        work = runner.work([b"MKTAYIAKQR", b"ACDWWYLLKM"], np.array([16]))
        assert len(work) == 2
        assert len(list(runner.run(work))) == 2
    assert placed == devices[:2]


def test_windows_of_a_stream_share_their_programs(encoder, monkeypatch):
    """Each window's own padded lengths would be compiled anew."""
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
        i: found.residues
        for _, i, found in runner.run(runner.work(sequences, np.array([8])))
    }
    seen = []

    def full_at_two_rows(module, params, tokens, segments):
        seen.append(tokens.shape[0])
        if tokens.shape[0] > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return embedder.Embedder._call(small, module, params, tokens, segments)

    small = encoder.make_embedder()
    monkeypatch.setattr(small, "_call", full_at_two_rows)
    found = list(small.run(small.work(sequences, np.array([8]))))
    assert sorted(i for _, i, _ in found) == list(range(7))
    assert max(seen) > 2 and seen.count(max(seen)) == 1  # Not tried again.
    for _, i, embedding in found:
        np.testing.assert_allclose(embedding.residues, expected[i], atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_one_sequence_that_does_not_fit_goes_blockwise_then_is_named(
    fused, encoder, monkeypatch
):
    runner = encoder.make_embedder()
    modes = []

    def never_fits(module, *_):
        modes.append((module.config.flash, module.config.attention))
        raise RuntimeError("RESOURCE_EXHAUSTED: no")

    if fused:
        monkeypatch.setattr(forward, "for_shape", lambda x, *_: forward.flash(x))
    monkeypatch.setattr(runner, "_call", never_fits)
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
        config = forward.for_shape(module, 2, length, platform).config
        return "flash" if getattr(config, "flash", False) else config.attention

    monkeypatch.setattr(attention, "has_flash", lambda dtype, head_dim: True)
    assert [choice(x) for x in modules] == ["flash", "flash", "plain"]
    assert [choice(x, platform="cpu") for x in modules] == ["plain"] * 3
    assert [choice(x, platform="tpu") for x in modules] == ["plain"] * 3
    # Of one row: two rows' plain scores would already be too many.
    assert choice(encoder.module, longest) == "flash"
    assert choice(encoder.module, longest + 1) == "blockwise"
    assert choice(forward.blockwise(encoder.module)) == "blockwise"  # As was asked.
    monkeypatch.setattr(attention, "has_flash", lambda dtype, head_dim: False)
    assert [choice(x) for x in modules] == ["plain"] * 3


def test_fused_attention_gives_the_same_vectors(encoder, monkeypatch):
    """In float32 by JAX's own function, in the place of the GPU's kernel."""
    monkeypatch.setattr(attention, "_FLASH", "xla")
    sequences = [b"MKTAYIAKQR", b"ACDWWY", b"LL"]
    runner = encoder.make_embedder()
    fused = encoder.make_embedder()
    fused.module = forward.flash(encoder.module)
    plain, flash = (
        {i: x.residues for _, i, x in r.run(r.work(sequences, np.array([12])))}
        for r in (runner, fused)
    )
    for i in range(3):
        np.testing.assert_allclose(flash[i], plain[i], rtol=0, atol=1e-5)


def test_a_setting_that_the_model_has_not_is_named(model_folder):
    with pytest.raises(ValueError, match=r"^depth: T5Config has no such field. It has"):
        prottrans_jax.load_encoder(model_folder, depth=3)


def test_nobody_can_ask_for_fused_attention_by_a_setting(encoder, model_folder):
    """Packed rows would leak into each other."""
    with pytest.raises(ValueError, match=r"^flash: T5Config has no such field"):
        prottrans_jax.load_encoder(model_folder, flash=True)
    with pytest.raises((TypeError, ValueError), match="flash"):
        dataclasses.replace(encoder.config, flash=True)
    with pytest.raises(ValueError, match="attention='flash' is not known"):
        dataclasses.replace(encoder.config, attention="flash")
    fused = forward.flash(encoder.module).config
    assert fused.flash and not encoder.config.flash and fused != encoder.config
    assert not dataclasses.replace(fused, attention="blockwise").flash


def test_blockwise_is_plain_attention(encoder):
    sequence = "MKTAYIAKQRACDEFGHIKL" * 40
    tokens, mask = encoder.tokenize([sequence])
    plain = encoder(tokens, mask)
    module = forward.blockwise(encoder.module)
    blocks = forward.encode(module, encoder.params, tokens, mask, forward.Layers())
    np.testing.assert_allclose(blocks, plain, rtol=0, atol=1e-5)
    # As the embedder does it, layer by layer.
    wanted = forward.Wanted(forward.Layers(), None, True, 0, 0)
    segments = mask.astype(np.int32)
    layered, _ = forward.run(module, encoder.params, tokens, segments, wanted)
    np.testing.assert_allclose(layered, plain, rtol=0, atol=1e-5)


def wide_model(family, dtype):
    """Sizes that a CPU's own products take."""
    sizes = {
        "vocab_size": 30,
        "num_layers": 2,
        "d_model": 64,
        "d_ff": 96,
        "num_heads": 3,
        "head_dim": 32,
        "scan_layers": False,
        "dtype": dtype,
        "param_dtype": dtype,
    }
    if family == "t5":
        return t5.T5(t5.T5Config(num_decoder_layers=0, **sizes))
    if family == "bert":
        return bert.Bert(bert.BertConfig(max_length=200, **sizes))
    if family == "albert":
        return albert.Albert(albert.AlbertConfig(max_length=200, d_embed=32, **sizes))
    if family == "electra":
        return electra.ElectraEncoder(
            electra.ElectraEncoderConfig(max_length=200, d_embed=32, **sizes)
        )
    return xlnet.XLNet(xlnet.XLNetConfig(**sizes))


def test_a_cpus_own_attention_takes_the_place_of_blockwise_attention(monkeypatch):
    """XLNet's has none whose memory grows with the length only."""
    modules = [wide_model(x, "float32") for x in ("t5", "bert", "xlnet")]

    def ways(platform):
        chosen = [forward.for_shape(x, 2, 40, platform) for x in modules]
        return [x.config.attention for x in chosen]

    monkeypatch.setattr(x86, "is_usable", lambda: True)
    assert ways("cpu") == ["blockwise", "blockwise", "plain"]
    assert ways("tpu") == ["plain"] * 3
    monkeypatch.setattr(x86, "is_usable", lambda: False)
    assert ways("cpu") == ["plain"] * 3


needs_x86 = pytest.mark.skipif(
    not x86.is_usable(), reason="no AVX-512 for bfloat16, or not compiled"
)


@needs_x86
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", ["t5", "bert", "xlnet"])
def test_what_x86_has_of_its_own_is_used_and_gives_the_same(family, dtype, monkeypatch):
    module, wide = wide_model(family, dtype), dtype == "float32"
    tokens = np.random.default_rng(0).integers(4, 25, (2, 11)).astype(np.int32)
    segments = (np.arange(11) < np.array([[11], [7]])).astype(np.int32)
    generator = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.asarray(generator.normal(0, 0.2, x.shape), dtype),
        layerwise.encoder_shapes(module),
    )
    wanted = forward.Wanted(forward.Layers(), None, True, 0, 0)

    def run():
        chosen = forward.for_shape(module, *tokens.shape, "cpu")
        hidden, _ = forward.run(chosen, params, tokens, segments, wanted)
        hidden = np.asarray(hidden, np.float32)
        return np.concatenate([hidden[0], hidden[1, :7]])

    seen = []
    for name in ("product", "attention", "norm"):
        function = getattr(x86, name)

        def note(*args, function=function, name=name, **keywords):
            seen.append(name)
            return function(*args, **keywords)

        monkeypatch.setattr(x86, name, note)
    jax.clear_caches()
    ours = run()
    assert set(seen) == {"product", "attention", "norm"}
    seen.clear()
    forward.encode(module, params, tokens, segments, forward.Layers())
    assert not seen  # In research code it is XLA's, which can be derived and exported.
    monkeypatch.setattr(x86, "is_usable", lambda: False)
    jax.clear_caches()
    xla = run()
    assert not seen
    size = np.abs(xla).max()
    limit = size * (1e-5 if wide else 2.0**-5)
    np.testing.assert_allclose(ours, xla, rtol=0, atol=limit)


SEQUENCES = [b"MKTAYIAKQR", b"ACDWWY", b"GGGGGGGGGGGGGGGGG", b"W", b"LLKM"]


def wide_embedder(family, dtype="float32", max_length=200, **options):
    """With random weights, and two special tokens before and one after residues."""
    module = wide_model(family, "bfloat16" if dtype == "int8" else dtype)
    if family != "t5" and family != "xlnet":
        config = dataclasses.replace(module.config, max_length=max_length)
        module = module.clone(config=config)
    generator = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: generator.normal(0, 0.2, x.shape).astype(np.float32),
        layerwise.encoder_shapes(module),
    )
    params = frozen_params.place(params, jnp.dtype(dtype))
    table = np.arange(256) % 25 + 4
    tokens = embedder.Tokens(table, prefix=(2, 3), suffix=(1,), pad_id=0)
    return embedder.Embedder(module, params, tokens, **options)


def embed_with(runner, sequences=SEQUENCES):
    work = runner.work(sequences, runner.buckets([len(x) for x in sequences]))
    return {i: found for _, i, found in runner.run(work)}


@needs_x86
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
@pytest.mark.parametrize("family", ["t5", "bert", "albert", "electra"])
def test_proteins_in_one_row_have_the_vectors_they_have_alone(
    family, dtype, monkeypatch
):
    sequences = [*SEQUENCES, b"MKTAY" * 14]
    runner = wide_embedder(family, dtype)
    work = runner.work(sequences, runner.buckets([len(x) for x in sequences]))
    (call,) = work
    assert isinstance(call.batch, batching.Packed) and call.batch.length == 128
    together = {i: np.array(found.residues) for _, i, found in runner.run(work)}
    for i, sequence in enumerate(sequences):
        alone = embed_with(runner, [sequence])[0].residues
        assert alone.shape == (len(sequence), 64)
        np.testing.assert_array_equal(alone, together[i])
    if dtype == "int8":
        return  # Of XLA's way other numbers are rounded.
    monkeypatch.setattr(x86, "is_usable", lambda: False)
    jax.clear_caches()
    padded = wide_embedder(family, dtype)
    assert not padded.packs
    for i, found in embed_with(padded, sequences).items():
        wide = np.asarray(found.residues, np.float32)
        limit = np.abs(wide).max() * (1e-5 if dtype == "float32" else 2.0**-5)
        np.testing.assert_allclose(
            together[i].astype(np.float32), wide, rtol=0, atol=limit
        )


@needs_x86
@pytest.mark.parametrize("pool", ["mean", "max", "cls"])
@pytest.mark.parametrize("layers", [-1, "all", "last2"])
def test_proteins_in_one_row_are_pooled_each_by_itself(pool, layers):
    chosen = forward.parse_layers(layers, 2)
    runner = wide_embedder("t5", layers=chosen, pool=pool)
    assert runner.packs
    one_a_row = wide_embedder("t5", layers=chosen, pool=pool)
    one_a_row.packs = False
    wanted = embed_with(one_a_row)
    for i, found in embed_with(runner).items():
        assert found.protein.dtype == np.float32
        np.testing.assert_allclose(found.protein, wanted[i].protein, rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            found.residues, wanted[i].residues, rtol=0, atol=1e-5
        )
    alone = wide_embedder("t5", layers=chosen, pool=pool, keep_residues=False)
    for i, found in embed_with(alone).items():
        assert found.residues is None
        np.testing.assert_allclose(found.protein, wanted[i].protein, rtol=0, atol=1e-5)


@needs_x86
def test_xlnets_proteins_have_rows_of_their_own():
    assert not wide_embedder("xlnet").packs


@needs_x86
def test_rows_of_several_keep_to_the_models_positions_and_to_the_limit():
    sequences = [b"MKTAYIAKQRLLKMACD"] * 9  # 20 tokens each.
    short = wide_embedder("bert", max_length=50)
    work = short.work(sequences, short.buckets([]))
    assert [len(item.sequences) for item in work] == [2, 2, 2, 2, 1]
    assert len(list(short.run(work))) == 9
    few = wide_embedder("t5", max_rows=4)
    work = few.work(sequences, few.buckets([]))
    assert [len(item.sequences) for item in work] == [4, 4, 1]


@needs_x86
def test_what_is_before_and_behind_the_layers_is_the_cpus_own_too(monkeypatch):
    seen = []
    norm = x86.norm

    def note(epsilon, dtype, x, *args, **keywords):
        seen.append(x.shape)
        return norm(epsilon, dtype, x, *args, **keywords)

    monkeypatch.setattr(x86, "norm", note)
    counts = {}
    for family in ("t5", "albert"):
        jax.clear_caches()
        seen.clear()
        embed_with(wide_embedder(family))
        counts[family] = len(seen), len({shape[-1] for shape in seen})
    # Two in a layer, compiled once. T5 ends with one; ALBERT begins with one, of its
    # embeddings, which are narrower: it is traced, if in vain, for the end as well.
    assert counts == {"t5": (3, 1), "albert": (4, 2)}


@needs_x86
def test_a_row_that_does_not_fit_is_halved_until_it_does(monkeypatch):
    expected = embed_with(wide_embedder("t5"))
    small = wide_embedder("t5")
    call, seen = small._call, []

    def full_at_30(module, params, tokens, segments):
        seen.append(int((segments != 0).sum()))
        if seen[-1] > 30:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return call(module, params, tokens, segments)

    monkeypatch.setattr(small, "_call", full_at_30)
    for _ in range(2):
        found = embed_with(small)
        assert sorted(found) == list(range(5))
        for i, embedding in found.items():
            np.testing.assert_array_equal(embedding.residues, expected[i].residues)
    # 20 + 13 + 9 + 7 + 4 tokens; what was seen not to fit is not tried again.
    assert seen == [53, 20, 13, 20, 20, 13, 20]


@needs_x86
def test_one_protein_that_does_not_fit_among_others_is_named(monkeypatch):
    small, left_out = wide_embedder("t5"), []
    call = small._call

    def full_at_15(module, params, tokens, segments):
        if (segments != 0).sum() > 15:
            raise RuntimeError("RESOURCE_EXHAUSTED: no")
        return call(module, params, tokens, segments)

    monkeypatch.setattr(small, "_call", full_at_15)
    work = small.work(SEQUENCES, small.buckets([]))
    found = small.run(work, lambda work, error: left_out.append((work, str(error))))
    assert sorted(i for _, i, _ in found) == [0, 1, 3, 4]
    ((work, error),) = left_out
    assert work.batch.members == (2,) and "17 residues does not fit" in error


def test_what_is_loaded_is_printed_in_a_line(encoder):
    assert repr(encoder) == "Encoder('tiny_t5', T5, 3 layers, d_model 12, float32)"
    assert repr(prottrans_jax.load_model(encoder.source)) == "Model('tiny_t5', T5)"
    assert {"load_encoder", "load_model", "__version__"} <= set(dir(prottrans_jax))


@pytest.mark.parametrize(
    ("layers", "message"), [(7, "layer 7"), ("last9", "layer -9"), ("first", "first")]
)
def test_unknown_layers_are_refused(encoder, layers, message):
    with pytest.raises(ValueError, match=message):
        encoder.embed(["MK"], layers=layers)


def test_other_mistakes_are_explained(encoder):
    for given in ("MKT", {"protein": "MKT"}):
        for method in (encoder.embed, encoder.tokenize):
            with pytest.raises(ValueError, match=r"list of sequences.*proteins.values"):
                method(given)
    with pytest.raises(ValueError, match=r"pairs, not a dict: of a dict its items\(\)"):
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
    """Two ways of summing: a protein's vector must not depend on its company."""
    seen = []
    monkeypatch.setitem(forward.PLAIN_SCORES_BYTES, "cpu", 4 * 2 * 2 * 24 * 24)

    def note(module, *args, **keywords):
        seen.append((args[1].shape, module.config.attention))
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


def test_face_is_lazy():
    code = (
        "import sys, prottrans_jax; assert 'jax' not in sys.modules; "
        "prottrans_jax.load_encoder; "
        "bad = {'tensorflow', 'seqio', 'torch', 'gin', 'h5py'} & set(sys.modules); "
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
