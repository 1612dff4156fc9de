"""Gin files: where they are found, what they may do, and what mistakes are told."""

import copy
import errno
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

import gin
from prottrans_jax import partitioning
from prottrans_jax.config import building, checking, mains, reading
from prottrans_jax.optimizers import schedules

BASE = """
    from __gin__ import dynamic_registration
    from prottrans_jax import partitioning
    MODEL_PARALLEL = 2
    partitioning.Partitioner:
      scheme = "2d"
      model = %MODEL_PARALLEL
    partitioning.make_mesh.devices = @partitioning.Partitioner()
"""


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> pathlib.Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


def partitioner():
    return building.configured(partitioning.Partitioner)()


# ------------------------------------------------------------------ what is bound


def test_file_and_bindings_reach_the_called_function(write):
    building.parse([write("a.gin", BASE)])
    assert (partitioner().scheme, partitioner().model) == ("2d", 2)


def test_command_line_uses_modules_that_only_an_included_file_imports(write):
    write("base.gin", BASE)
    leaf = write("leaf.gin", "include 'base.gin'\nMODEL_PARALLEL = 4")
    building.parse([leaf], ["partitioning.Partitioner.num_devices = 3"])
    assert (partitioner().model, partitioner().num_devices) == (4, 3)


def test_later_files_and_then_bindings_win(write):
    files = [write("a.gin", BASE), write("b.gin", "MODEL_PARALLEL = 4")]
    building.parse(files)
    assert partitioner().model == 4
    building.parse(files, ["MODEL_PARALLEL = 8"])
    assert partitioner().model == 8


def test_short_form_of_a_name_in_use_is_understood(write):
    building.parse([write("a.gin", BASE)], ["Partitioner.data = 5"])
    assert partitioner().data == 5


def test_second_parse_forgets_the_first(write):
    building.parse([write("a.gin", BASE)], ["Partitioner.data = 5"])
    building.parse([write("a.gin", BASE)])
    assert partitioner().data == -1


def test_scoped_bindings_apply_in_their_scope_only(write):
    text = BASE.replace("@partitioning", "@small/partitioning")
    path = write("a.gin", text)
    config = building.parse([path], ["small/Partitioner.num_devices = 1"])
    reference = config.bindings["", "partitioning.make_mesh", "devices"]
    assert building.build(reference).num_devices == 1
    assert building.build(reference, model=1).model == 1
    assert partitioner().num_devices is None
    assert config.parameters(reference) == {
        "scheme": "2d",
        "model": 2,
        "num_devices": 1,
    }


def test_objects_are_those_that_gin_builds(write):
    text = """
        from __gin__ import dynamic_registration
        from prottrans_jax import optimizers
        from prottrans_jax import partitioning
        from prottrans_jax.optimizers import schedules
        RATE = 0.125
        optimizers.AdamW.learning_rate = @schedules.InverseSqrt()
        schedules.InverseSqrt.peak = %RATE
        schedules.InverseSqrt.warmup_steps = 9
        one/schedules.InverseSqrt.peak = 0.5
        one/two/schedules.InverseSqrt.warmup_steps = 7
        three/schedules.InverseSqrt.peak = 0.25
        VALUES = [
            @optimizers.AdamW(),
            (@one/optimizers.AdamW(), {"a": @one/two/optimizers.AdamW()}),
            {%RATE: [@three/schedules.InverseSqrt(), None, -1e-3, "x"]},
        ]
        partitioning.make_mesh.devices = %VALUES
    """
    config = building.parse([write("a.gin", text)], trust_config=True)
    values = building.build("%VALUES")
    gin.clear_config()
    gin.parse_config(config.text)
    expected = copy.deepcopy(gin.query_parameter("%VALUES"))
    assert values == expected
    warmup = [x.learning_rate.warmup_steps for x in (values[0], values[1][1]["a"])]
    assert warmup == [9, 7]


def test_singleton_of_gin_is_built_once(write):
    text = """
        from __gin__ import dynamic_registration
        from prottrans_jax import optimizers
        from prottrans_jax import partitioning
        from prottrans_jax.optimizers import schedules
        schedules.Constant.learning_rate = 0.5
        shared/gin.singleton.constructor = @schedules.Constant
        RATES = [@shared/gin.singleton(), @shared/gin.singleton()]
        partitioning.make_mesh.devices = %RATES
    """
    building.parse([write("a.gin", text)], trust_config=True)
    first, second = building.build("%RATES")
    assert first is second and first.learning_rate == 0.5


def test_resolved_config_is_a_file_that_gives_the_same_configuration(write):
    write("base.gin", BASE)
    leaf = write("leaf.gin", "include 'base.gin'\nMODEL_PARALLEL = 4")
    first = building.parse([leaf], ["Partitioner.extra_rules = [('kv', None)]"])
    assert building.resolved_config() == first.text
    again = building.parse([write("resolved.gin", first.text)])
    assert again.text == first.text
    assert (partitioner().model, partitioner().extra_rules) == (4, [("kv", None)])


def test_macro_is_followed_through_references_and_other_macros(write):
    config = building.parse(
        [write("a.gin", BASE)],
        ["partitioning.make_mesh.devices = [1, (2, @partitioning.Partitioner())]"],
    )
    for name, expected in (("devices", True), ("model", False)):
        bound = config.bindings.get(("", "partitioning.make_mesh", name))
        assert config.depends_on(bound, "MODEL_PARALLEL") == expected
    mesh = reading.Reference("", "partitioning.make_mesh", call=True)
    assert config.depends_on(mesh, "MODEL_PARALLEL")
    assert not config.depends_on(mesh, "SOMETHING_ELSE")


def test_t5x_style_arguments_become_bindings():
    args = ["train.py", "--gin.TRAIN_STEPS=10", "--model_dir=x"]
    assert mains.rewrite_gin_args(args) == [
        "train.py",
        "--gin_bindings=TRAIN_STEPS = 10",
        "--model_dir=x",
    ]


# ------------------------------------------------------------------ finding files


def test_leaf_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    leaf = reading.leaves()[0]
    assert reading.find_file(leaf).name == leaf
    assert reading.find_file(leaf.removesuffix(".gin")).name == leaf


def test_search_paths_are_looked_in(write, tmp_path):
    write("mine.gin", BASE)
    assert building.parse(["mine.gin"], search_paths=[tmp_path]).files == (
        (tmp_path / "mine.gin").resolve(),
    )


def test_misspelt_leaf_names_nearest_leaves_and_folders(tmp_path):
    with pytest.raises(building.UsageError) as error:
        building.parse(["prot_t5_x1.gin"], search_paths=[tmp_path])
    message = str(error.value)
    assert "Nearest: prot_t5_xl.gin" in message
    assert str(tmp_path) in message
    assert str(reading.package_folder()) in message
    assert "prot_t5_base.gin" in message


def test_the_gin_folder_never_shadows_gin_config():
    root = reading.package_folder()
    assert not list(root.rglob("*.py"))
    code = "import gin; print(gin.parse_config.__module__)"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root.parent, capture_output=True, text=True
    )
    assert out.stdout.strip() == "gin.config", out.stderr


def test_file_that_includes_itself_is_refused(write):
    path = write("loop.gin", "include 'loop.gin'")
    with pytest.raises(building.UsageError, match="includes itself"):
        building.parse([path])


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("partitioning.Partitioner.schem = '2d'", "Nearest: scheme"),
        ("partitioning.Partitoner.scheme = '2d'", "Nearest: Partitioner"),
        ("partitionning.Partitioner.model = 2", "Nearest: partitioning"),
        ("MODEL_PARALEL = 4", "Nearest: MODEL_PARALLEL"),
        ("Partitioner.model = %MODEL_PARALEL", "Nearest: MODEL_PARALLEL"),
        ("from prottrans_jax import partitionin", "Nearest: prottrans_jax.partition"),
        ("MODEL_PARALLEL = /tmp/x", "quotes"),
        ("MODEL_PARALLEL", "not gin syntax"),
        ("Partitioner.model = @partitioning.SCHEMES", "not a function"),
    ],
)
def test_mistake_says_where_and_what_is_nearest(write, binding, expected):
    with pytest.raises(building.UsageError, match="gin_bindings") as error:
        building.parse([write("a.gin", BASE)], [binding])
    assert expected in str(error.value)


def test_macros_that_name_each_other_are_refused(write):
    with pytest.raises(building.UsageError, match="name each other"):
        building.parse(
            [write("a.gin", BASE)], ["MODEL_PARALLEL=%X", "X=%MODEL_PARALLEL"]
        )


def test_mistake_in_a_file_is_given_with_its_line(write):
    path = write("a.gin", BASE + "    partitioning.Partitioner.modle = 3\n")
    with pytest.raises(building.UsageError, match=r"a\.gin:9.*Nearest: model"):
        building.parse([path])


def test_binding_may_replace_the_only_use_of_a_macro(write):
    building.parse([write("a.gin", BASE)], ["Partitioner.model = 3"])
    assert partitioner().model == 3


def test_every_mistake_is_told_at_once(write):
    with pytest.raises(building.UsageError) as error:
        building.parse([write("a.gin", BASE)], ["Partitioner.a = 1", "BB = 2"])
    assert "'a'" in str(error.value) and "BB" in str(error.value)


def test_required_values_are_listed_together(write):
    text = BASE.replace("= 2", "= %gin.REQUIRED").replace('"2d"', "%gin.REQUIRED")
    text += "    partitioning.make_mesh.devices = @partitioning.is_axes()\n"
    with pytest.raises(building.UsageError) as error:
        building.parse([write("a.gin", text)])
    message = str(error.value)
    assert "MODEL_PARALLEL = ..." in message
    assert "partitioning.Partitioner.scheme = ..." in message
    assert "partitioning.is_axes.value = ..." in message  # has no default


def test_required_macro_that_a_command_does_not_need_may_stay_without_a_value(write):
    text = BASE.replace('"2d"', "%SCHEME") + "    SCHEME = %gin.REQUIRED\n"
    path = write("a.gin", text)
    with pytest.raises(building.UsageError, match=r"SCHEME = \.\.\."):
        checking.check([path])
    config = checking.check([path], unneeded=["SCHEME", "OTHER"])
    assert config.macros == {"MODEL_PARALLEL": 2, "SCHEME": "unused"}
    given = checking.check([path], ["SCHEME = '2d'"], unneeded=["SCHEME"])
    assert given.macros["SCHEME"] == "2d"


def test_main_exits_with_2_and_no_traceback(tmp_path):
    main = tmp_path / "main.py"
    main.write_text(
        "from prottrans_jax.config import mains\n"
        "mains.define_flags()\n"
        "mains.run(lambda argv: mains.parse_flags() and None)\n"
    )
    command = [sys.executable, str(main), "--gin_file=nothing_like_it.gin"]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 2
    assert "Traceback" not in out.stderr and "No gin file" in out.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "log"), 1),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "log"), 1),
        (OSError(errno.EMFILE, "Too many open files", "log"), 1),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "log"), 2),
    ],
)
def test_error_of_the_system_in_a_configured_function_is_one_line(
    error, status, monkeypatch, capsys
):
    def main(argv):
        raise error

    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as left:
        mains.run(main)
    assert left.value.code == status
    assert capsys.readouterr().err == f"error: {error}\n"


def test_tensorflows_start_is_silent_and_what_others_say_is_not(tmp_path):
    main = tmp_path / "main.py"
    main.write_text(
        "import os, sys\n"
        "from prottrans_jax.config import mains\n"
        "mains.define_flags()\n"
        "def main(argv):\n"
        "    mains.parse_flags()\n"
        "    assert 'tensorflow' in sys.modules\n"
        "mains.run(main)\n"
    )
    (tmp_path / "warner.gin").write_text(
        "include 'sample.gin'\nfrom __gin__ import dynamic_registration\n"
        "import warner\n"
    )
    (tmp_path / "warner.py").write_text(
        "import os\nos.write(2, b'W1122 disk.cc:3] a disk is failing\\n')\n"
    )
    out = subprocess.run(
        [
            sys.executable,
            str(main),
            "--gin_file=warner.gin",
            "--gin.MODEL_DIR='run'",
            "--trust_config",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert out.returncode == 0, out.stderr
    assert out.stderr == "W1122 disk.cc:3] a disk is failing\n"


# ------------------------------------------------------------------ trust


EVIL = {
    "plain import": "import canary",
    "from import": "from canary import anything",
    "dynamic registration": """
        from __gin__ import dynamic_registration
        import subprocess
        from prottrans_jax import partitioning
        partitioning.Partitioner.model = @subprocess.getoutput()
        subprocess.getoutput.cmd = "touch CANARY"
    """,
    "through a module of ours": """
        from __gin__ import dynamic_registration
        from prottrans_jax.config import reading
        from prottrans_jax import partitioning
        partitioning.Partitioner.model = @reading.pathlib.Path.touch()
        reading.pathlib.Path.touch.self = "CANARY"
    """,
    "through the package": """
        from __gin__ import dynamic_registration
        import prottrans_jax.partitioning
        prottrans_jax.partitioning.jax.jit.fun = "CANARY"
    """,
    "another file as trusted": """
        from __gin__ import dynamic_registration
        from prottrans_jax.config import building
        building.parse.trust_config = True
    """,
    "a program": """
        from __gin__ import dynamic_registration
        from prottrans_jax import convert
        convert.main.argv = ["CANARY"]
    """,
}


@pytest.mark.parametrize("how", EVIL)
def test_file_from_elsewhere_runs_nothing(how, write, tmp_path, monkeypatch):
    canary = tmp_path / "CANARY"
    (tmp_path / "canary.py").write_text(f"open({str(canary)!r}, 'w')\nanything = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write("evil.gin", textwrap.dedent(EVIL[how]).replace("CANARY", str(canary)))
    with pytest.raises(building.UsageError):
        building.parse([path])
    leaf = write("leaf.gin", "include 'evil.gin'")
    with pytest.raises(building.UsageError, match=r"leaf\.gin|evil\.gin"):
        building.parse([leaf])
    assert not canary.exists()


def test_trusted_file_imports_any_module(write, tmp_path, monkeypatch):
    canary = tmp_path / "CANARY"
    (tmp_path / "canary2.py").write_text(f"open({str(canary)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write("mine.gin", BASE.replace("MODEL", "import canary2\n    MODEL", 1))
    with pytest.raises(building.UsageError, match="--trust_config"):
        building.parse([path])
    assert not canary.exists()
    building.parse([path], trust_config=True)
    assert canary.exists()


# ------------------------------------------------------------------ types


def test_whole_number_spelled_as_a_float_is_one(write):
    config = building.parse([write("a.gin", BASE)], ["MODEL_PARALLEL = 4e0"])
    assert partitioner().model == 4
    assert "MODEL_PARALLEL = 4\n" in config.text


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("MODEL_PARALLEL = 2.5", "MODEL_PARALLEL = 2.5: expected a whole number"),
        ("MODEL_PARALLEL = [2]", r"MODEL_PARALLEL = \[2\]: expected a whole number"),
        ("MODEL_PARALLEL = None", "MODEL_PARALLEL = None: expected a whole number"),
        ("MODEL_PARALLEL = True", "expected a whole number"),
        ("MODEL_PARALLEL = -2", "expected a whole number, 0 or more or -1"),
        ("Partitioner.scheme = 2", "Partitioner.scheme = 2: expected text in quotes"),
        ("Partitioner.num_devices = 'all'", "expected a whole number.* or None"),
        ("Partitioner.extra_rules = 'kv'", "expected a list"),
    ],
)
def test_value_of_another_type_is_named_with_the_type_expected(
    write, binding, expected
):
    with pytest.raises(building.UsageError, match=f"gin_bindings=.*{expected}"):
        building.parse([write("a.gin", BASE)], [binding])


def test_wrong_type_through_a_macro_names_the_macro_and_its_use(write):
    with pytest.raises(building.UsageError) as error:
        building.parse([write("a.gin", BASE)], ["MODEL_PARALLEL = 'two'"])
    (line,) = str(error.value).splitlines()
    assert "MODEL_PARALLEL = 'two'" in line
    assert "(for partitioning.Partitioner.model)" in line


@pytest.mark.parametrize("leaf", reading.leaves())
def test_every_leaf_has_values_of_the_right_types(leaf):
    config = reading.find_file(leaf).read_text()
    given = ["MODEL_DIR = 'run'"]
    if "INITIAL_CHECKPOINT_PATH = %gin.REQUIRED" in config:
        given.append("INITIAL_CHECKPOINT_PATH = 'start'")
    checking.check([leaf], given)


def test_task_that_is_not_registered_names_the_nearest_three():
    with pytest.raises(building.UsageError) as error:
        checking.check(
            ["sample.gin"],
            ["MODEL_DIR = 'x'", "MIXTURE_OR_TASK_NAME = 'sampel_causal'"],
        )
    (line,) = str(error.value).splitlines()
    assert "no task 'sampel_causal' among 65" in line
    assert line.endswith(
        "Nearest: sample_causal_lm, sample_masked_lm, fasta_causal_lm."
    )


@pytest.mark.parametrize(
    ("name", "settings", "schedule"),
    [
        ("constant", ["learning_rate = 0.5"], schedules.Constant(0.5)),
        ("inverse_sqrt", ["peak = 1", "warmup_steps = 9"], schedules.InverseSqrt(1, 9)),
        (
            "linear_warmup_linear_decay",
            ["peak = 1", "warmup_steps = 2", "total_steps = 9"],
            schedules.LinearWarmupLinearDecay(1, 2, 9),
        ),
        ("by_factors", ["warmup_steps = 9"], schedules.ByFactors(warmup_steps=9)),
    ],
)
def test_gin_files_of_earlier_versions_give_the_schedules(
    name, settings, schedule, tmp_path
):
    path = tmp_path / "earlier.gin"
    lines = [f"schedules.{name}.{setting}" for setting in settings]
    path.write_text(
        "from __gin__ import dynamic_registration\n"
        "from prottrans_jax import schedules\n"
        f"RATE = @schedules.{name}()\n" + "\n".join(lines) + "\n"
        "optimizers.AdamW.learning_rate = %RATE\n"
    )
    building.parse(["sample_bert.gin", path], ["MODEL_DIR = 'unused'"])
    assert building.build("%RATE") == schedule
