"""Every leaf: parses, builds, has the size it says, and fits every mesh."""

import math
import pathlib
import re

from flax import linen as nn
import jax
import pytest
import seqio

from prottrans_jax.config import building, reading
from prottrans_jax.training import train_state

ROOT = reading.package_folder()
LEAVES = reading.leaves()
# Tiny, of our own choosing.
TRAINED_HERE = tuple(n for n in LEAVES if n.startswith("sample"))
MESHES = sorted(path.name for path in (ROOT / "meshes").glob("*.gin"))
# What a leaf leaves to the user.
GIVEN = ["MODEL_DIR = 'run'", "INITIAL_CHECKPOINT_PATH = 'start'"]


def test_guide_lists_each_macro_of_pre_training_with_its_default():
    text = (ROOT / "runs" / "pretrain.gin").read_text()
    macros = re.findall(r"^([A-Z_]+) = (.+?)(?: +#.*)?$", text, re.MULTILINE)
    guide = (pathlib.Path(__file__).parents[1] / "docs/pretraining.md").read_text()
    table = guide.partition("| macro |")[2]
    listed = re.findall(r"^\| `([A-Z_]+)` \|.*\| `?(.+?)`? \|$", table, re.MULTILINE)
    assert listed
    assert listed == [(name, value.removeprefix("%gin.")) for name, value in macros]


def text_of(leaf):
    return (ROOT / leaf).read_text()


class Device:
    """Enough of a device for a mesh that nothing runs on."""

    platform = "none"
    device_kind = "none"
    process_index = 0

    def __init__(self, number):
        self.id = number


def build(leaf, *more, num_devices=1):
    """(objective, optimizer, partitioner, batch shapes) of a leaf, without its data."""
    config = building.parse([leaf, *more], GIVEN)
    train = {
        parameter: value
        for (_, selector, parameter), value in config.bindings.items()
        if selector == "trainer.train"
    }
    data = config.parameters(train["train_data"])
    objective = building.build(train["objective"])
    lengths = data["feature_lengths"]
    shapes = {
        name: jax.ShapeDtypeStruct(
            (
                data["batch_size"],
                lengths["targets" if name.startswith("decoder") else "inputs"],
            ),
            "float32" if name.endswith("weights") else "int32",
        )
        for name in objective.features
    }
    partitioner = building.build(
        train["partitioner"], devices=[Device(i) for i in range(num_devices)]
    )
    return objective, building.build(train["optimizer"]), partitioner, shapes


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


def encoder_parameters(vocab, layers, d_model, d_ff, d_embed, positions, unshared):
    """BERT's kinship by hand, with a head for masked tokens and no pooler."""
    attention = 4 * (d_model * d_model + d_model) + 2 * d_model
    mlp = 2 * d_model * d_ff + d_ff + d_model + 2 * d_model
    tables = (vocab + positions + 2) * d_embed + 2 * d_embed
    projection = d_embed * d_model + d_model if d_embed != d_model else 0
    head = d_model * d_embed + d_embed + 2 * d_embed + vocab
    stack = (attention + mlp) * (layers if unshared else 1)
    return tables + projection + stack + head


def electra_parameters():
    """Discriminator and generator; tables and their norm are shared."""
    generator = encoder_parameters(30, 30, 256, 1024, 1024, 40_000, True)
    tables = (30 + 40_000 + 2) * 1024 + 2 * 1024
    head = 1024 * 1024 + 1024 + 1024 + 1
    both = encoder_parameters(30, 30, 1024, 4096, 1024, 40_000, True)
    masked_head = 1024 * 1024 + 1024 + 2 * 1024 + 30
    return both - masked_head + head + generator - tables


# Family -> parameters as its file states them, and counted another way.
FAMILIES = {
    "bert": (
        419_933_214,
        encoder_parameters(30, 30, 1024, 4096, 1024, 40_000, True),
    ),
    "albert": (
        207_557_794,
        encoder_parameters(34, 12, 4096, 16384, 128, 40_000, False),
    ),
    "electra": (444_152_607, electra_parameters()),
    # The bytes of the released file: 1,637,654,676.
    "xlnet": (409_413_669, 1_637_654_676 // 4),
    "transformer_xl": (
        570_875_928,
        32 * (5 * 1024 * 1024 + 2 * 1024 + 2 * 1024 * 6144 + 6144 + 1024 + 4 * 1024)
        + 24 * 1024
        + 24,
    ),
}


def family_leaves(family):
    prefix = f"prot_{family}"
    return [n for n in LEAVES if n.startswith(prefix)]


@pytest.mark.parametrize("family", FAMILIES)
def test_family_has_the_parameters_that_its_file_states(family):
    stated, counted = FAMILIES[family]
    assert stated == counted
    text = (ROOT / f"models/prot_{family}.gin").read_text()
    assert f"{stated:,} parameters" in text
    leaves = family_leaves(family)
    assert leaves
    for leaf in leaves:
        assert num_parameters(leaf) == stated, leaf


def test_released_files_hold_what_masked_lm_does_not_train():
    # Poolers: the published counts are 420.98 M and 224.3 M.
    assert FAMILIES["bert"][0] + 1024 * 1024 + 1024 == 420_982_814
    assert FAMILIES["albert"][0] + 4096 * 4096 + 4096 == 224_339_106


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_divide_on_every_mesh(family, mesh):
    leaf = family_leaves(family)[0]
    _, partitioner, shapes = plan(leaf, mesh)
    rows = next(iter(shapes.values())).shape[0]
    # Published batches are multiples of the hardware that they ran on.
    if partitioner.mesh.size <= 512:
        assert rows % partitioner.mesh.shape["data"] == 0


@pytest.mark.parametrize("mesh", MESHES)
def test_mesh_file_sets_the_number_of_devices_alone(mesh):
    # The layout is the leaf's: what comes later would override it for every model.
    lines = (ROOT / "meshes" / mesh).read_text().splitlines()
    code = [line for line in lines if not line.startswith("#")]
    assert len(code) == 1 and re.fullmatch(r"NUM_DEVICES = \d+", code[0])


@pytest.mark.parametrize(
    "leaf",
    [n for n in LEAVES if n not in TRAINED_HERE and "fully_sharded" in text_of(n)],
)
def test_fully_sharded_leaf_divides_on_the_hardware_of_its_header(leaf):
    cores = re.search(r"Hardware: .*?([\d,]+) TPU|meshes/v3-(1024)", text_of(leaf))
    mesh = {"1024": "v3-1024.gin", "512": "v3-512.gin"}[
        (cores[1] or cores[2]).replace(",", "")
    ]
    state, partitioner, shapes = plan(leaf, mesh)
    rows = next(iter(shapes.values())).shape[0]
    assert rows % partitioner.mesh.shape["data"] == 0
    assert state.num_params > 0


def test_every_family_has_all_kinds_of_leaves():
    for family in FAMILIES:
        assert f"sample_{family}.gin" in LEAVES
    assert "sample.gin" in LEAVES
    # Both stages where the original had two.
    for leaf in ("bert_bfd", "bert_uniref100", "albert", "electra"):
        stages = [n for n in LEAVES if n.startswith(f"prot_{leaf}")]
        assert {f"prot_{leaf}.gin", f"prot_{leaf}_2048.gin"} <= set(stages)


def test_every_size_is_tested():
    named = {
        leaf.split("_")[2].removesuffix(".gin")
        for leaf in LEAVES
        if leaf.startswith("prot_t5_")
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


NUMBERS = (
    r"(BATCH_SIZE|TRAIN_STEPS|DROPOUT|TASK_FEATURE|MODEL_PAR|WARMUP|LEARNING|WEIGHT)"
)


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_number_of_a_released_model_has_its_source(leaf):
    for line in (ROOT / leaf).read_text().splitlines():
        if re.match(NUMBERS, line):
            assert leaf in TRAINED_HERE or "#" in line, line


@pytest.mark.parametrize("leaf", LEAVES)
def test_task_gives_the_features_and_ids_that_the_model_reads(leaf):
    objective, *_, shapes = build(leaf, num_devices=16)
    name = building.build("%MIXTURE_OR_TASK_NAME")
    corruption = seqio.get_mixture_or_task(name).preprocessors[-1].corruption
    lengths = building.build("%TASK_FEATURE_LENGTHS")
    assert set(lengths) == {layout.length for layout in corruption.layouts}
    features = {n for layout in corruption.layouts for n in layout.features}
    assert set(objective.features) <= features
    assert corruption.vocabulary.size == objective.model.config.vocab_size
    # A row has no more positions than the model has a table for.
    length = shapes[objective.features[0]].shape[1]
    assert length <= getattr(objective.model.config, "max_length", length)


@pytest.mark.parametrize("leaf", TRAINED_HERE)
def test_leaf_that_trains_here_finds_its_data(leaf):
    config = building.parse([leaf], GIVEN)
    train = config.parameters(building.Reference("", "trainer.train", call=True))
    objective = building.build(train["objective"])
    batch = building.build(train["train_data"]).batch(0, slice(1, 2))
    assert set(objective.features) <= set(batch)
    held_out = building.build(train["eval_data"])["validation"]
    assert held_out.num_batches > 0


def test_leaf_can_be_overridden_as_t5x_users_do():
    config = building.parse(
        ["prot_t5_xl.gin"],
        [*GIVEN[:1], "TRAIN_STEPS = 7", "Logs.period = 3", "t5.T5Config.d_ff = 5"],
    )
    bound = config.bindings
    assert config.value(bound["", "trainer.train", "total_steps"]) == 7
    assert bound["", "run_settings.Logs", "period"] == 3
    assert bound["", "t5.T5Config", "d_ff"] == 5


def test_continued_leaf_asks_for_its_start():
    with pytest.raises(
        building.UsageError, match="INITIAL_CHECKPOINT_PATH = "
    ) as error:
        building.parse(["prot_t5_xl_uniref50.gin"])
    assert "MODEL_DIR = " in str(error.value)


def test_leaves_with_a_decay_to_zero_say_that_more_steps_are_another_run():
    decays = {}
    for leaf in LEAVES:
        building.parse([leaf], GIVEN)
        decays[leaf] = building.total_steps_shape_the_run()
    others = ("sample.gin", "evotune.gin")
    t5 = {leaf for leaf in LEAVES if "prot_t5" in leaf or leaf in others}
    assert {leaf for leaf in LEAVES if not decays[leaf]} == t5
