"""float32 vectors of a protein alone, in other padded lengths and in a batch."""

import itertools

import jax
import numpy as np
import pytest

from prottrans_jax.embed import batching, embedder, layerwise
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import albert, bert, t5, xlnet

SEQUENCE = b"MKTAYIAKQRLLKMACDWWY"
OTHERS = (b"ACD", b"GGGGWYVLLKMPPPPSTNQ")
# Weights multiplied by the first number differ by the second at most, relative to the
# vector's largest value: what docs/embedding.md says. Tripled weights make attention
# sharp, which amplifies every rounding.
BOUNDS = [(1.0, 5e-6), (3.0, 5e-4)]


def make_module(family):
    sizes = {
        "vocab_size": 30,
        "num_layers": 3,
        "d_model": 24,
        "d_ff": 40,
        "num_heads": 2,
        "head_dim": 12,
    }
    compute = compute_config.ComputeConfig(scan_layers=False)
    if family == "t5":
        return t5.T5(t5.T5Config(num_decoder_layers=0, **sizes), compute)
    if family == "bert":
        return bert.Bert(bert.BertConfig(max_length=100, **sizes), compute)
    if family == "albert":
        return albert.Albert(
            albert.AlbertConfig(max_length=100, d_embed=16, **sizes), compute
        )
    return xlnet.XLNet(xlnet.XLNetConfig(**sizes), compute)


def make_params(module, factor):
    generator = np.random.default_rng(0)

    def make(path, x):
        if x.ndim >= 2:
            fan_in = x.shape[-2] if "kernel" in jax.tree_util.keystr(path) else 1
            scale = factor / np.sqrt(fan_in)
            return generator.normal(0, scale, x.shape).astype(np.float32)
        is_scale = "scale" in jax.tree_util.keystr(path)
        return np.full(x.shape, float(is_scale), np.float32)

    return jax.tree_util.tree_map_with_path(make, layerwise.encoder_shapes(module))


def embed(runner, sequences, rows, length):
    lengths = [len(x) + runner.tokens.num_special for x in sequences]
    batch = batching.one_each(range(len(lengths)), lengths, rows=rows, length=length)
    work = embedder.Work(batch, list(sequences))
    vectors = {i: embedding.residues for _, i, embedding in runner.run([work])}
    return np.array(vectors[0], np.float32)


@pytest.mark.parametrize("family", ["t5", "bert", "albert", "xlnet"])
def test_vectors_alone_and_in_a_batch_agree_within_the_bound_of_the_guide(family):
    module = make_module(family)
    table = np.arange(256) % 23 + 5
    tokens = embedder.Tokens(table, (2,), (3,), 0)
    for factor, bound in BOUNDS:
        runner = embedder.Embedder(module, make_params(module, factor), tokens)
        alone = embed(runner, [SEQUENCE], 1, len(SEQUENCE) + 2)
        for rows, length in ((1, 64), (3, 64)):
            company = [SEQUENCE, *OTHERS[: rows - 1]]
            other = embed(runner, company, rows, length)
            assert np.abs(other - alone).max() <= bound * np.abs(alone).max()


@pytest.mark.parametrize("family", ["t5", "bert", "albert"])
def test_vectors_alone_and_in_a_shared_row_agree_within_that_bound(family):
    module = make_module(family)
    tokens = embedder.Tokens(np.arange(256) % 23 + 5, (2,), (3,), 0)
    for factor, bound in BOUNDS:
        params = make_params(module, factor)
        runner = embedder.Embedder(module, params, tokens)
        alone = embed(runner, [SEQUENCE], 1, len(SEQUENCE) + 2)
        sharing = embedder.Embedder(module, params, tokens, may_share_rows=True)
        assert sharing.shares_rows
        # Between two others in the second row.
        company = [OTHERS[1], OTHERS[1], SEQUENCE, OTHERS[0]]
        first, *second = (len(x) + 2 for x in company)
        stops = np.cumsum([0, *second]).tolist()
        spans = [(1, *ends) for ends in itertools.pairwise(stops)]
        spans = [batching.Span(*span) for span in [(0, 0, first), *spans]]
        batch = batching.Batch((0, 1, 2, 3), tuple(spans), 2, 64)
        vectors = {
            i: embedding.residues
            for _, i, embedding in sharing.run([embedder.Work(batch, company)])
        }
        other = np.array(vectors[2], np.float32)
        assert np.abs(other - alone).max() <= bound * np.abs(alone).max()
