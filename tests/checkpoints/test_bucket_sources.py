"""Other libraries' checkpoints in a bucket, as sources of parameters."""

import tempfile

import jax
import numpy as np
import pytest

from cases import stores
from prottrans_jax.checkpoints import manifests, opening
from prottrans_jax.files import folders
from prottrans_jax.interop import huggingface, mesh_tf, t5x
from prottrans_jax.models import t5

CONFIG = t5.T5Config(
    vocab_size=128,
    num_layers=3,
    num_decoder_layers=2,
    num_heads=2,
    head_dim=5,
    d_model=12,
    d_ff=17,
)
WRITERS = {"hf": huggingface.write, "t5x": t5x.write, "mtf": mesh_tf.write}


@pytest.fixture(scope="module")
def params():
    return t5.init_params(CONFIG, jax.random.key(0))


@stores.slow_on_s3
@pytest.mark.parametrize(
    "is_prefixed", [True, pytest.param(False, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_run_starts_from_a_checkpoint_in_a_bucket(
    kind, is_prefixed, params, bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    WRITERS[kind](tmp_path / "model", CONFIG, params)
    folders.upload(tmp_path / "model", f"{bucket}/model")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    source = f"{kind}:" * is_prefixed + f"{bucket}/model"
    loaded = opening.load_params(source, abstract, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    with opening.opened(source) as checkpoint:
        assert str(checkpoint.source).startswith(f"{bucket}/model")
        expected = opening.read(f"{kind}:{tmp_path / 'model'}")
        jax.tree.map(np.testing.assert_array_equal, checkpoint.params, expected.params)
    # The copies are gone.
    assert list((tmp_path / "temporary").iterdir()) == []


@stores.slow_on_s3
@pytest.mark.parametrize("kind", WRITERS)
def test_a_source_that_is_not_in_the_bucket_is_named(kind, params, bucket):
    with pytest.raises(manifests.CheckpointError, match=f"{bucket}/none: no such"):
        opening.load_params(f"{kind}:{bucket}/none", params, CONFIG)
