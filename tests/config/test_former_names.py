"""Gin files of earlier versions: their names of functions, classes and parameters."""

import textwrap

import pytest

from prottrans_jax import partitioning
from prottrans_jax.config import building, former_names, reading

SCHEDULES = "prottrans_jax.optimizers.schedules"
PARTITIONING = "prottrans_jax.partitioning"
HEAD = """
    from __gin__ import dynamic_registration
    from prottrans_jax import partitioning
    from prottrans_jax import optimizers
    from prottrans_jax.optimizers import schedules
"""


@pytest.fixture(autouse=True)
def renamed(monkeypatch):
    """As if names of `partitioning` and `schedules` had other names before.

    `Grid` is now `Partitioner`, and its `shape` is `scheme`. `make_mesh.rows` and
    `make_mesh.warmup` are now `Partitioner.data` and `ByFactors.warmup_steps`, of an
    object that `make_mesh.devices` takes.
    """
    names = {f"{PARTITIONING}.Grid": f"{PARTITIONING}.Partitioner"}
    moved = {
        f"{PARTITIONING}.Partitioner.shape": former_names.Moved(
            f"{PARTITIONING}.Partitioner.scheme", f"{PARTITIONING}.make_mesh.devices"
        ),
        f"{PARTITIONING}.make_mesh.rows": former_names.Moved(
            f"{PARTITIONING}.Partitioner.data", f"{PARTITIONING}.make_mesh.devices"
        ),
        f"{PARTITIONING}.make_mesh.warmup": former_names.Moved(
            f"{SCHEDULES}.ByFactors.warmup_steps", f"{PARTITIONING}.make_mesh.devices"
        ),
    }
    monkeypatch.setattr(former_names, "CONFIGURABLES", names)
    monkeypatch.setattr(former_names, "PARAMETERS", moved)


@pytest.fixture
def parse(tmp_path):
    def parse(text: str, bindings=(), head=HEAD):
        path = tmp_path / "old.gin"
        path.write_text(textwrap.dedent(head) + textwrap.dedent(text))
        return building.parse([path], bindings)

    return parse


def test_former_name_binds_the_renamed_class(parse):
    config = parse("partitioning.Grid.data = 3")
    assert config.bindings == {("", "partitioning.Partitioner", "data"): 3}
    assert building.configured(partitioning.Partitioner)().data == 3


def test_former_name_in_a_reference_gives_the_renamed_class(parse):
    text = """
        GRID = @big/partitioning.Grid()
        big/partitioning.Grid.data = 3
        partitioning.make_mesh.devices = %GRID
    """
    config = parse(text)
    assert config.bindings["big", "partitioning.Partitioner", "data"] == 3
    assert building.build("%GRID").data == 3


def test_former_name_in_its_short_form_is_understood_on_the_command_line(parse):
    parse("partitioning.Partitioner.data = 3", ["Grid.data = 5"])
    assert building.configured(partitioning.Partitioner)().data == 5


def test_later_binding_wins_whichever_name_it_uses(parse):
    key = ("", "partitioning.Partitioner", "scheme")
    now, before = "Partitioner.scheme = '2d'", "Grid.shape = 'fully_sharded'"
    text = f"partitioning.{now}"
    assert parse(text, [before]).bindings[key] == "fully_sharded"
    assert parse(text, [before, now]).bindings[key] == "2d"


def test_moved_parameter_binds_the_object_that_has_it_now(parse):
    config = parse("ROWS = 7\npartitioning.make_mesh.rows = %ROWS")
    mesh = building.Reference("", "partitioning.make_mesh", call=True)
    held = config.parameters(mesh)["devices"]
    assert held == building.Reference("", "partitioning.Partitioner", call=True)
    assert config.parameters(held) == {"data": 7}
    assert config.depends_on(mesh, "ROWS")
    assert building.build(held).data == 7


def test_configuration_with_former_names_is_written_with_new_ones(parse, tmp_path):
    config = parse("partitioning.make_mesh.rows = 7\npartitioning.Grid.model = 2\n")
    written = tmp_path / "config.gin"
    written.write_text(config.text)
    assert building.parse([written]).text == config.text
    assert "Grid" not in config.text and "rows" not in config.text


def test_object_that_a_file_binds_itself_is_kept(parse):
    text = """
        partitioning.make_mesh.devices = @mine/partitioning.Partitioner()
        partitioning.make_mesh.rows = 7
    """
    held = parse(text).bindings["", "partitioning.make_mesh", "devices"]
    assert held == building.Reference("mine", "partitioning.Partitioner", call=True)
    assert building.build(held).data == 7


def test_moved_parameter_in_a_scope_stays_in_it(parse):
    config = parse("small/partitioning.make_mesh.rows = 7")
    assert config.bindings == {
        ("small", "partitioning.Partitioner", "data"): 7,
        ("small", "partitioning.make_mesh", "devices"): building.Reference(
            "small", "partitioning.Partitioner", call=True
        ),
    }


def test_module_of_a_moved_parameter_is_imported(parse):
    head = HEAD.replace("    from prottrans_jax.optimizers import schedules\n", "")
    config = parse("partitioning.make_mesh.warmup = 7", head=head)
    assert config.imports["schedules"] == SCHEDULES
    assert config.bindings["", "schedules.ByFactors", "warmup_steps"] == 7


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("partitioning.Grid.date = 3", "no parameter 'date'. Nearest: data"),
        ("partitioning.Grid.data = 2.5", "expected a whole number"),
        ("partitioning.make_mesh.rows = 'two'", "expected a whole number"),
        ("partitioning.make_mesh.rows = %ROWS", "uses %ROWS, which nothing sets"),
        ("partitioning.make_mesh.row = 2", "no parameter 'row'"),
    ],
)
def test_mistake_under_a_former_name_gives_the_line_of_the_file(parse, line, expected):
    with pytest.raises(building.UsageError, match=r"old\.gin:6: ") as error:
        parse(line)
    assert expected in str(error.value)


def test_new_holder_takes_the_scope_of_the_former_one(parse, monkeypatch):
    # As when a field of a model's configuration moves to another object of the model.
    moved = former_names.Moved(
        f"{SCHEDULES}.ByFactors.warmup_steps", f"{PARTITIONING}.make_mesh.data"
    )
    rows = {f"{PARTITIONING}.Partitioner.warmup": moved}
    monkeypatch.setattr(former_names, "PARAMETERS", rows)
    text = """
        GRID = @big/partitioning.Partitioner()
        partitioning.make_mesh.devices = %GRID
        partitioning.Partitioner.warmup = 7
    """
    with pytest.raises(building.UsageError) as error:
        parse(text)
    assert "make_mesh.data = @big/schedules.ByFactors()" in str(error.value)


@pytest.mark.parametrize(("former", "leaf"), former_names.LEAVES.items())
def test_former_leaf_names_the_one_to_use_instead(former, leaf):
    assert leaf in reading.leaves()
    for name in (former, f"{former}.gin"):
        with pytest.raises(
            building.UsageError, match=f"no {name} any more: use {leaf}"
        ):
            building.parse([name])
