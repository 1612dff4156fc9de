"""x86-64 kernels: vectors agree with XLA's, also in packed rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.embed import embedder, forward, layerwise
from prottrans_jax.encoders import frozen_params
from prottrans_jax.kernels import x86
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import albert, bert, electra, t5, xlnet

needs_x86 = pytest.mark.skipif(
    not x86.is_usable(), reason="no AVX-512 for bfloat16, or not compiled"
)
SEQUENCES = [b"MKTAYIAKQR", b"ACDWWY", b"GGGGGGGGGGGGGGGGG", b"W", b"LLKM"]


def wide_model(family, dtype):
    """Sizes that the x86 kernels support."""
    sizes = {
        "vocab_size": 30,
        "num_layers": 2,
        "d_model": 64,
        "d_ff": 96,
        "num_heads": 3,
        "head_dim": 32,
    }
    compute = compute_config.ComputeConfig(
        scan_layers=False, dtype=dtype, param_dtype=dtype
    )
    if family == "t5":
        return t5.T5(t5.T5Config(num_decoder_layers=0, **sizes), compute)
    if family == "bert":
        return bert.Bert(bert.BertConfig(max_length=200, **sizes), compute)
    if family == "albert":
        return albert.Albert(
            albert.AlbertConfig(max_length=200, d_embed=32, **sizes), compute
        )
    if family == "electra":
        return electra.ElectraEncoder(
            electra.ElectraEncoderConfig(max_length=200, d_embed=32, **sizes), compute
        )
    return xlnet.XLNet(xlnet.XLNetConfig(**sizes), compute)


def test_x86_attention_replaces_blockwise_attention(monkeypatch):
    """x86 attention of XLNet does not have linear memory."""
    modules = [wide_model(x, "float32") for x in ("t5", "bert", "xlnet")]

    def ways(platform):
        chosen = [forward.for_shape(x, 2, 40, platform) for x in modules]
        return [x.compute.attention for x in chosen]

    monkeypatch.setattr(x86, "is_usable", lambda: True)
    assert ways("cpu") == ["blockwise", "blockwise", "plain"]
    assert ways("tpu") == ["plain"] * 3
    monkeypatch.setattr(x86, "is_usable", lambda: False)
    assert ways("cpu") == ["plain"] * 3


@needs_x86
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", ["t5", "bert", "xlnet"])
def test_x86_kernels_are_used_and_give_the_same_vectors(family, dtype, monkeypatch):
    module, wide = wide_model(family, dtype), dtype == "float32"
    tokens = np.random.default_rng(0).integers(4, 25, (2, 11)).astype(np.int32)
    segments = (np.arange(11) < np.array([[11], [7]])).astype(np.int32)
    generator = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.asarray(generator.normal(0, 0.2, x.shape), dtype),
        layerwise.encoder_shapes(module),
    )
    spec = forward.OutputSpec(forward.Layers(), None, True, 0, 0)

    def run():
        chosen = forward.for_shape(module, *tokens.shape, "cpu")
        hidden, _ = forward.run(chosen, params, tokens, segments, spec)
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
    return {i: embedding for _, i, embedding in runner.run(work)}


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
    assert (call.batch.rows, call.batch.length) == (1, 128)
    together = {i: np.array(embedding.residues) for _, i, embedding in runner.run(work)}
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
    for i, embedding in embed_with(padded, sequences).items():
        wide = np.asarray(embedding.residues, np.float32)
        limit = np.abs(wide).max() * (1e-5 if dtype == "float32" else 2.0**-5)
        np.testing.assert_allclose(
            together[i].astype(np.float32), wide, rtol=0, atol=limit
        )


@needs_x86
@pytest.mark.parametrize("pool", ["mean", "max", "cls"])
@pytest.mark.parametrize("layers", [-1, "all", "last2"])
def test_proteins_in_one_row_are_pooled_separately(pool, layers):
    chosen = forward.parse_layers(layers, 2)
    runner = wide_embedder("t5", layers=chosen, pool=pool)
    assert runner.packs
    one_a_row = wide_embedder("t5", layers=chosen, pool=pool)
    one_a_row.packs = False
    expected = embed_with(one_a_row)
    for i, embedding in embed_with(runner).items():
        assert embedding.protein.dtype == np.float32
        np.testing.assert_allclose(
            embedding.protein, expected[i].protein, rtol=0, atol=1e-5
        )
        np.testing.assert_allclose(
            embedding.residues, expected[i].residues, rtol=0, atol=1e-5
        )
    alone = wide_embedder("t5", layers=chosen, pool=pool, keep_residues=False)
    for i, embedding in embed_with(alone).items():
        assert embedding.residues is None
        np.testing.assert_allclose(
            embedding.protein, expected[i].protein, rtol=0, atol=1e-5
        )


@needs_x86
def test_xlnets_proteins_have_rows_of_their_own():
    assert not wide_embedder("xlnet").packs


@needs_x86
def test_packed_rows_respect_the_models_positions_and_max_rows():
    sequences = [b"MKTAYIAKQRLLKMACD"] * 9  # 20 tokens each.
    short = wide_embedder("bert", max_length=50)
    work = short.work(sequences, short.buckets([]))
    assert [len(item.sequences) for item in work] == [2, 2, 2, 2, 1]
    assert len(list(short.run(work))) == 9
    few = wide_embedder("t5", max_rows=4)
    work = few.work(sequences, few.buckets([]))
    assert [len(item.sequences) for item in work] == [4, 4, 1]


@needs_x86
def test_x86_kernels_are_used_before_and_after_the_layers(monkeypatch):
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
    run, seen = forward.run, []

    def full_at_30(module, params, tokens, segments, spec):
        seen.append(int((segments != 0).sum()))
        if seen[-1] > 30:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return run(module, params, tokens, segments, spec)

    monkeypatch.setattr(forward, "run", full_at_30)
    for _ in range(2):
        embeddings = embed_with(small)
        assert sorted(embeddings) == list(range(5))
        for i, embedding in embeddings.items():
            np.testing.assert_array_equal(embedding.residues, expected[i].residues)
    # 20 + 13 + 9 + 7 + 4 tokens; what was seen not to fit is not tried again.
    assert seen == [53, 20, 13, 20, 20, 13, 20]


@needs_x86
def test_one_protein_that_does_not_fit_among_others_is_named(monkeypatch):
    small, left_out = wide_embedder("t5"), []
    run = forward.run

    def full_at_15(module, params, tokens, segments, spec):
        if (segments != 0).sum() > 15:
            raise RuntimeError("RESOURCE_EXHAUSTED: no")
        return run(module, params, tokens, segments, spec)

    monkeypatch.setattr(forward, "run", full_at_15)
    work = small.work(SEQUENCES, small.buckets([]))
    results = small.run(work, lambda work, error: left_out.append((work, str(error))))
    assert sorted(i for _, i, _ in results) == [0, 1, 3, 4]
    ((work, error),) = left_out
    assert work.batch.members == (2,) and "17 residues does not fit" in error
