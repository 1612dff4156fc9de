"""Exported folders: what was trained comes out, and others can open it."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prottrans_jax
from prottrans_jax import cli
from prottrans_jax.checkpoints import checkpointing, run_identity
from prottrans_jax.encoders import exporting
from prottrans_jax.models import electra, t5, transformer_xl

SEQUENCES = ["MKTAYIAKQR", "ACD", "WWYLLKM"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's directory with one step, its configuration and parameters."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = t5.T5Config(
        vocab_size=128,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=2,
        head_dim=5,
        d_model=12,
        d_ff=17,
    )
    params = t5.init_params(config, jax.random.key(4))
    save_run(folder, config, params)
    return folder, config, params


def save_run(folder, config, params):
    """What training leaves in its directory, as far as export looks at it."""
    with checkpointing.Checkpointer(folder / "checkpoints") as checkpointer:
        state = {"params": params, "step": np.int32(7)}
        metadata = {
            "identity": run_identity.identity(model=config),
            "config": "TRAIN_STEPS = 7",
            "seed": 5,
        }
        checkpointer.save(7, state, metadata)


def export(source, output, *flags):
    return subprocess.run(
        [
            *(sys.executable, "-m", "prottrans_jax.export"),
            *(f"--checkpoint={source}", f"--output={output}", *flags),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("exports") / "mine"
    done = export(trained[0], output, "--stablehlo")
    assert done.returncode == 0, done.stderr
    return output


def test_exported_encoder_is_the_trained_one(trained, exported):
    _, config, params = trained
    encoder = prottrans_jax.load_encoder(exported, dtype="float32")
    tokens, mask = encoder.tokenize(SEQUENCES)
    expected = t5.T5(config).apply(
        {"params": params},
        *jax.device_put((tokens, mask)),
        deterministic=True,
        method="encode",
    )
    np.testing.assert_allclose(encoder(tokens, mask), expected, rtol=0, atol=1e-5)
    assert encoder.config.num_decoder_layers == 0


def test_provenance_tells_step_training_and_every_hash(exported):
    about = json.loads((exported / "provenance.json").read_text())
    assert about["step"] == 7
    assert about["training"]["seed"] == 5
    assert about["training"]["config"] == "TRAIN_STEPS = 7"
    names = {path.name for path in exported.iterdir()} - {"provenance.json"}
    assert about["sha256"].keys() == names
    for name, digest in about["sha256"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    pieces = json.loads((exported / "vocabulary.json").read_text())["pieces"]
    assert pieces["A"] == 3 and pieces["</s>"] == 1
    assert "Licence" in (exported / "README.md").read_text()


def test_transformers_opens_the_folder(exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder = prottrans_jax.load_encoder(exported, dtype="float32")
    tokens, mask = encoder.tokenize(SEQUENCES)
    model = transformers.T5EncoderModel.from_pretrained(exported).eval()
    with torch.no_grad():
        theirs = model(
            torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()
    ours = np.asarray(encoder(tokens, mask))
    np.testing.assert_allclose(ours[mask], theirs[mask], rtol=0, atol=2e-5)


def test_program_needs_jax_alone_and_takes_any_batch_and_length(exported, tmp_path):
    encoder = prottrans_jax.load_encoder(exported, dtype="float32")
    code = """
import sys, pathlib, numpy as np
from jax import export
program = export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
assert set(program.platforms) == {"cpu", "cuda", "tpu"}, program.platforms
given = np.load(sys.argv[2])
found = {k: program.call(given[f"tokens{k}"], given[f"mask{k}"]) for k in "12"}
np.savez(sys.argv[3], **found)
assert not [name for name in sys.modules if name.startswith(("flax", "prottrans"))]
"""
    first = encoder.tokenize(SEQUENCES)
    second = encoder.tokenize(["MKTAYIAKQR" * 20])  # Beyond the largest distance.
    np.savez(
        tmp_path / "in.npz",
        tokens1=first[0],
        mask1=first[1],
        tokens2=second[0],
        mask2=second[1],
    )
    program = pathlib.Path(exported / "encoder.stablehlo")
    done = subprocess.run(
        [sys.executable, "-c", code, program, tmp_path / "in.npz", tmp_path / "o.npz"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "o.npz")
    for key, (tokens, mask) in (("1", first), ("2", second)):
        np.testing.assert_allclose(found[key], encoder(tokens, mask), atol=1e-5)


@pytest.mark.parametrize("name", ["prot_bert", "prot_albert", "prot_electra_generator"])
def test_programs_of_families_with_position_tables(shared, name):
    encoder = prottrans_jax.load_encoder(
        shared / "data/interop/hf_tiny" / name,
        dtype="float32",
        vocabulary=None if name == "prot_albert" else "prot_bert",
    )
    program = exporting.to_stablehlo(encoder.module, encoder.params)
    program = jax.export.deserialize(program.serialize())
    tokens, mask = encoder.tokenize(["MKTAYIAK", "MKT"])
    np.testing.assert_allclose(
        program.call(tokens, mask)[mask], encoder(tokens, mask)[mask], atol=1e-5
    )
    longer = np.ones((1, encoder.config.max_length + 1), np.int32)
    with pytest.raises(ValueError, match="refining shapes"):
        program.call(longer, longer.astype(bool))


def test_program_of_an_xlnet_is_refused_and_leaves_nothing(shared, tmp_path):
    folder = shared / "data/interop/hf_tiny/prot_xlnet"
    done = export(folder, tmp_path / "out", "--stablehlo")
    assert done.returncode == 1 and "--stablehlo" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_whole_model_in_bfloat16(trained, tmp_path):
    output = tmp_path / "whole"
    done = export(trained[0], output, "--part=all", "--dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    assert (output / "model.safetensors").stat().st_size < 60_000
    model = prottrans_jax.load_model(output, dtype="float32")
    tokens, targets = jnp.array([[3, 4, 5, 1]]), jnp.array([[0, 3, 4, 5]])
    logits = model(tokens, targets)
    expected = t5.T5(trained[1]).apply(
        {"params": trained[2]}, tokens, targets, deterministic=True
    )
    assert np.corrcoef(np.ravel(logits), np.ravel(expected))[0, 1] > 0.999


@pytest.mark.parametrize("part", ["encoder", "all"])
@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_either_network_of_an_electra_is_exported(network, part, tmp_path):
    config = electra.ElectraConfig(
        vocab_size=30,
        num_layers=3,
        num_heads=2,
        head_dim=6,
        d_model=12,
        d_ff=17,
        generator_num_layers=2,
        generator_num_heads=1,
        generator_head_dim=8,
        generator_d_model=8,
        generator_d_ff=9,
        max_length=40,
    )
    params = electra.init_params(config, jax.random.key(8))
    save_run(tmp_path / "run", config, params)
    output = tmp_path / "mine"
    exporting.export(
        tmp_path / "run", output, encoder_only=part == "encoder", network=network
    )
    encoder = prottrans_jax.load_encoder(output, dtype="float32")
    assert encoder.d_model == {"generator": 8, "discriminator": 12}[network]
    tokens, mask = encoder.tokenize(SEQUENCES)
    both = electra.Electra(config).apply(
        {"params": params},
        jnp.asarray(tokens),
        segment_ids=jnp.asarray(mask, jnp.int32),
        deterministic=True,
    )
    wanted = both[["generator", "discriminator"].index(network)]
    np.testing.assert_allclose(
        np.asarray(encoder(tokens, mask))[mask], wanted.encoded[mask], atol=1e-5
    )
    if part == "all":
        found = prottrans_jax.load_model(output, dtype="float32")(
            tokens, segment_ids=mask.astype(int)
        )
        head = {"generator": "logits", "discriminator": "replaced_logits"}[network]
        np.testing.assert_allclose(
            getattr(found, head)[mask], getattr(wanted, head)[mask], atol=1e-5
        )


def test_network_of_what_has_one_alone_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"one network \(T5Config\).*generator"):
        exporting.export(trained[0], tmp_path / "out", network="generator")


@pytest.mark.parametrize(
    "memory", [{"mem_length": 40}, {"mem_length": 7, "same_length": True}]
)
def test_transformer_xl_embeds_as_it_was_trained_with_memories(memory, tmp_path):
    config = transformer_xl.TransformerXLConfig(
        vocab_size=29,
        num_layers=3,
        num_heads=2,
        head_dim=5,
        d_model=12,
        d_ff=17,
        **memory,
    )
    params = transformer_xl.init_params(config, jax.random.key(6))
    save_run(tmp_path / "run", config, params)
    exporting.export(tmp_path / "run", tmp_path / "mine")
    encoder = prottrans_jax.load_encoder(tmp_path / "mine", dtype="float32")
    protein = "MKTAYIAKQRLLKWWPGACDEFGHIKLMNPQRSTVWY"
    vectors = encoder.embed(["WWYLLKM", protein])
    # The protein in segments of 5 tokens, each with the memories of those before it.
    tokens, _ = encoder.tokenize([protein])
    assert tokens[0, 0] == encoder.vocabulary.eos_id  # The start, as in training.
    memories, states = None, []
    for start in range(0, tokens.shape[1], 5):
        out = transformer_xl.TransformerXL(config).apply(
            {"params": params},
            jnp.asarray(tokens[:, start : start + 5]),
            memories=memories,
            deterministic=True,
            method="hidden",
        )
        memories = out.memories
        states.append(out.values[0])
    wanted = np.concatenate(states)[1:]
    np.testing.assert_allclose(vectors[1], wanted, rtol=0, atol=1e-5)
    (prefix,) = encoder.embed([protein[:9]])
    np.testing.assert_allclose(vectors[1][:9], prefix, rtol=0, atol=1e-5)
    source = tmp_path / "x.fasta"
    source.write_text(f">A\n{protein}\n>B\nWWYLLKM\n")
    report = encoder.embed_fasta(source, tmp_path / "out.npz", per_protein=True)
    assert report.embedded == 2
    pooled = np.load(tmp_path / "out.npz")["A"]
    np.testing.assert_allclose(pooled, wanted.mean(axis=0), rtol=0, atol=1e-5)


def test_mistakes_are_one_line(trained, exported, tmp_path):
    taken = export(trained[0], exported)
    assert taken.returncode == 1 and "not empty" in taken.stderr
    absent = export(tmp_path / "nowhere" / "run", tmp_path / "out")
    assert absent.returncode == 1 and "Traceback" not in absent.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "output", "status"),
    [("run", "fresh", 0), ("absent", "fresh", 1), ("run", "", 2), ("hdfs://b", "x", 2)],
)
def test_prottrans_export_runs_in_process_with_the_statuses_of_the_main(
    source, output, status, trained, tmp_path, monkeypatch
):
    def refuse(*arguments, **options):
        raise AssertionError("a second process is started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(trained[0])
    done = cli.main(["export", "--checkpoint", source, "--output", output])
    assert done == status
    assert (tmp_path / "fresh" / "config.json").exists() == (status == 0)


def test_embedding_with_a_damaged_run_is_one_line(trained, tmp_path, capsys):
    shutil.copytree(trained[0], tmp_path / "run")
    largest = max((tmp_path / "run").rglob("d/*"), key=lambda x: x.stat().st_size)
    largest.write_bytes(largest.read_bytes()[::-1])
    source = tmp_path / "x.fasta"
    source.write_text(">A\nMKTAY\n")
    given = ["embed", "-i", str(source), "-o", str(tmp_path / "out.h5"), "-m"]
    assert cli.main([*given, str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert largest.name in said and "Traceback" not in said
    assert cli.main([*given, str(trained[0])]) == 0
