"""Every leaf: parses, builds, has the size it says, and fits every mesh."""

import math
import re

from flax import linen as nn
import jax
import pytest

from prottrans_jax import gin_config, gin_utils, train_state

ROOT = gin_config.package_folder()
LEAVES = gin_config.leaves()
MESHES = sorted(path.name for path in (ROOT / "meshes").glob("*.gin"))
# What a leaf leaves to the user.
GIVEN = ["MODEL_DIR = 'run'", "INITIAL_CHECKPOINT_PATH = 'start'"]


class Device:
    """Enough of a device for a mesh that nothing runs on."""

    platform = "cpu"
    device_kind = "none"
    process_index = 0

    def __init__(self, number):
        self.id = number


def build(leaf, *more, num_devices=1):
    """(objective, optimizer, partitioner, batch shapes) of a leaf, without its data."""
    config = gin_utils.parse([leaf, *more], GIVEN)
    train = {
        parameter: value
        for (_, selector, parameter), value in config.bindings.items()
        if selector == "trainer.train"
    }
    data = config.parameters(train["train_data"])
    objective = gin_utils.build(train["objective"])
    lengths = data["feature_lengths"]
    shapes = {
        name: jax.ShapeDtypeStruct(
            (
                data["batch_size"],
                lengths["inputs" if name.startswith("encoder") else "targets"],
            ),
            "float32" if name.endswith("weights") else "int32",
        )
        for name in objective.features
    }
    partitioner = gin_utils.build(
        train["partitioner"], devices=[Device(i) for i in range(num_devices)]
    )
    return objective, gin_utils.build(train["optimizer"]), partitioner, shapes


def plan(leaf, mesh):
    devices = int(
        re.search(r"NUM_DEVICES = (\d+)", (ROOT / "meshes" / mesh).read_text())[1]
    )
    *parts, shapes = build(leaf, f"meshes/{mesh}", num_devices=devices)
    assert parts[2].mesh.size == devices
    return train_state.plan(*parts, shapes), parts[2], shapes


def num_parameters(leaf):
    objective, *_, shapes = build(leaf, num_devices=16)
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0), shapes))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(nn.unbox(params)))


def t5_parameters(vocab, layers, d_model, d_ff, heads, head_dim):
    """Counted by hand from Raffel et al. 2020, with tied embeddings and no biases."""
    attention = 4 * d_model * heads * head_dim + d_model  # and a norm scale
    mlp = 2 * d_model * d_ff + d_model
    encoder = layers * (attention + mlp) + 32 * heads + d_model
    decoder = layers * (2 * attention + mlp) + 32 * heads + d_model
    return vocab * d_model + encoder + decoder


SIZES = {
    "xl": (2_818_830_336, (128, 24, 1024, 16384, 32, 128)),
    "xxl": (11_274_553_344, (128, 24, 1024, 65536, 128, 128)),
    "large": (704_900_096, (128, 24, 1024, 4096, 16, 64)),
    "base": (198_327_552, (128, 12, 768, 3072, 12, 64)),
    "small": (44_122_624, (128, 6, 512, 2048, 8, 64)),
}


@pytest.mark.parametrize("size", SIZES)
def test_model_has_the_parameters_that_its_files_state(size):
    count, shape = SIZES[size]
    assert t5_parameters(*shape) == count
    for leaf in (f"prot_t5_{size}.gin", f"prot_t5_{size}_uniref50.gin"):
        assert num_parameters(leaf) == count
    assert f"{count:,} parameters" in (ROOT / f"models/prot_t5_{size}.gin").read_text()


def test_every_size_is_tested():
    named = {
        leaf.split("_")[2].removesuffix(".gin") for leaf in LEAVES if "_t5_" in leaf
    }
    assert named == set(SIZES)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_optimizer_state_divide_on_every_mesh(size, mesh):
    if (size, mesh) == ("xxl", "v3-8.gin"):
        with pytest.raises(ValueError, match="model=16"):  # 16 parts on 8 cores
            plan(f"prot_t5_{size}.gin", mesh)
        return
    state, partitioner, shapes = plan(f"prot_t5_{size}.gin", mesh)
    # `plan` raises if a dimension does not divide; the batch is cut over "data".
    rows = next(iter(shapes.values())).shape[0]
    assert rows % partitioner.mesh.shape["data"] == 0
    held = sum(
        math.prod(sharding.shard_shape(shape.shape))
        for shape, sharding in zip(
            jax.tree.leaves(state.shapes.params),
            jax.tree.leaves(state.shardings.params),
            strict=True,
        )
    )
    if partitioner.scheme in ("2d_sequence", "fully_sharded"):
        # All but the small tables is cut over every device.
        assert held * partitioner.mesh.size < 1.1 * SIZES[size][0]


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_is_short_and_says_command_hardware_and_figures(leaf):
    lines = (ROOT / leaf).read_text().splitlines()
    assert len(lines) <= 25
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"--gin_file={leaf}" in header
    assert "Hardware:" in header and "Expected:" in header
    assert "EXPECT" not in header


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_builds(leaf):
    objective, optimizer, partitioner, shapes = build(leaf, num_devices=16)
    assert objective.flops(shapes) > 0
    assert float(optimizer.learning_rate_at(0)) >= 0
    assert partitioner.mesh.size == 16


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_number_of_a_released_model_has_its_source(leaf):
    for line in (ROOT / leaf).read_text().splitlines():
        if re.match(r"(BATCH_SIZE|TRAIN_STEPS|DROPOUT|TASK_FEATURE|MODEL_PAR)", line):
            assert leaf == "sample.gin" or "#" in line, line


def test_leaf_can_be_overridden_as_t5x_users_do():
    config = gin_utils.parse(
        ["prot_t5_xl.gin"],
        [*GIVEN[:1], "TRAIN_STEPS = 7", "train.log_period = 3", "t5.T5Config.d_ff = 5"],
    )
    bound = config.bindings
    assert config.value(bound["", "trainer.train", "total_steps"]) == 7
    assert bound["", "trainer.train", "log_period"] == 3
    assert bound["", "t5.T5Config", "d_ff"] == 5


def test_continued_leaf_asks_for_its_start():
    with pytest.raises(
        gin_utils.UsageError, match="INITIAL_CHECKPOINT_PATH = "
    ) as error:
        gin_utils.parse(["prot_t5_xl_uniref50.gin"])
    assert "MODEL_DIR = " in str(error.value)
