"""Settings and ids that T5X and Mesh-TensorFlow have no place for come back."""

import dataclasses

import jax
import numpy as np
import pytest

from prottrans_jax.checkpoints import opening
from prottrans_jax.interop import side_notes, t5x
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import t5
from prottrans_jax.proteins import vocabulary

UNROLLED = compute_config.ComputeConfig(scan_layers=False)
CONFIG = t5.T5Config(
    vocab_size=131,
    num_layers=1,
    num_decoder_layers=0,
    num_heads=2,
    head_dim=3,
    d_model=8,
    d_ff=7,
    mlp_activations=("silu", "linear"),
    relative_max_distance=64,
    norm_epsilon=1e-3,
)


def params_of(config):
    return jax.tree.map(np.asarray, t5.init_params(config, jax.random.key(1), UNROLLED))


def write(kind, folder, **options):
    if kind == "mtf":
        pytest.importorskip("tensorflow")
        from prottrans_jax.interop import mesh_tf

        return mesh_tf.write(folder, CONFIG, params_of(CONFIG), **options)
    return t5x.write(folder, CONFIG, params_of(CONFIG), **options)


@pytest.mark.parametrize("kind", ["t5x", "mtf"])
def test_settings_without_a_shape_are_restored(tmp_path, kind):
    write(kind, tmp_path)
    found = opening.read(f"{kind}:{tmp_path}")
    assert dataclasses.replace(found.config) == CONFIG
    other = opening.read(f"{kind}:{tmp_path}", norm_epsilon=0.5)
    assert other.config.norm_epsilon == 0.5


@pytest.mark.parametrize("kind", ["t5x", "mtf"])
def test_ids_come_back_where_they_are_known(tmp_path, kind):
    pieces = ("<pad>", "</s>", "<unk>", *"YWVTSRQPNMLKIHGFEDCAX")
    own = dataclasses.replace(vocabulary.PROT_T5, name="own", pieces=pieces)
    write(kind, tmp_path / "known", ids=own)
    found = opening.read(f"{kind}:{tmp_path / 'known'}")
    assert not found.unknown_ids
    assert found.vocabulary.encode("YWA").tolist() == [3, 4, 22]
    write(kind, tmp_path / "unknown")
    assert "vocabulary" in opening.read(f"{kind}:{tmp_path / 'unknown'}").unknown_ids


def test_sentinels_without_a_row_do_not_matter(tmp_path):
    small = dataclasses.replace(CONFIG, vocab_size=31)
    t5x.write(tmp_path, small, params_of(small), ids=vocabulary.PROT_T5)
    found = opening.read(f"t5x:{tmp_path}")
    assert not found.unknown_ids and found.vocabulary is vocabulary.PROT_T5


def test_settings_that_other_programs_would_not_know_are_listed():
    assert side_notes.lost(CONFIG) == [
        "norm_epsilon=0.001 (by default 1e-06)",
        "relative_max_distance=64 (by default 128)",
        "mlp_activations=('silu', 'linear') (by default ('gelu', 'linear'))",
    ]
    usual = {"norm_epsilon": 1e-6, "relative_max_distance": 128}
    plain = dataclasses.replace(CONFIG, mlp_activations=("relu",), **usual)
    assert not side_notes.lost(plain)


def test_a_damaged_note_is_named(tmp_path):
    step = write("t5x", tmp_path)
    (step / side_notes.NAME).write_text("{")
    with pytest.raises(ValueError, match=r"prottrans_jax\.json is damaged"):
        opening.read(f"t5x:{tmp_path}")


def test_a_checkpoint_without_its_note_warns_of_the_defaults(tmp_path, caplog):
    step = write("t5x", tmp_path)
    opening.read(f"t5x:{tmp_path}")
    assert "does not exist" not in caplog.text
    (step / side_notes.NAME).unlink()
    opening.read(f"t5x:{tmp_path}", norm_epsilon=1e-3)
    (line,) = [x.getMessage() for x in caplog.records if "not exist" in x.getMessage()]
    assert str(step / side_notes.NAME) in line and "norm_epsilon" not in line
    assert "relative_max_distance=128; GELU in gated MLPs, ReLU in others" in line
