r"""Compiles a leaf's training step for an absent pod, and reports memory and cost.

  python -m prottrans_jax.precompile --gin_file=prot_t5_xl.gin --topology=v3:16x32

Needs libtpu (pip install "prottrans_jax[train,tpu]") but no TPU and no data set. Prints
for each device the memory used and available, FLOPs and collectives; and from the
chip's published peaks the minimum time of a step, the highest MFU and the limiting
resource.
Takes several topologies; --table adds a line for each to a Markdown file.

--compare compiles several layouts of one leaf and ranks them, e.g.
--compare=fully_sharded:save_attention,2d_sequence:8:full.

Exit status: 0 the step fits (with --compare: at least one layout does); 1 --table or
--save_hlo could not be written; 2 a mistake in the command line, settings, paths or
topology; 3 out of memory; 130 and 143 stopped by SIGINT and SIGTERM.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from prottrans_jax.distributed import stop_signals

if __name__ == "__main__":
    # Before the heavy imports below.
    stop_signals.install("precompile", "", ends_process=True)

from absl import flags

from prottrans_jax.config import requirements

requirements.check("train")

from prottrans_jax.config import building, mains
from prottrans_jax.files import ownership, paths, writing

if TYPE_CHECKING:
    from prottrans_jax.training import step_report

_TOPOLOGY = flags.DEFINE_list(
    "topology", None, "Slices as chip:axis x axis, e.g. v3:16x32,v5e:16x16."
)
_MAX_ROWS = flags.DEFINE_integer(
    "max_rows",
    None,
    "Maximum rows of a microbatch on each shard of the mesh axis 'data'. Raises "
    "NUM_MICROBATCHES if the leaf's value gives more rows: a small slice then computes "
    "a pod's batch in many microbatches.",
)
_TABLE = flags.DEFINE_string("table", None, "Markdown file to add a line per slice to.")
_COMPARE = flags.DEFINE_list(
    "compare",
    [],
    "Layouts to compile instead of the leaf's own, as scheme:remat or "
    "scheme:model:remat, by commas: PARTITIONING, MODEL_PARALLEL (default 1) and "
    "REMAT_POLICY. A summary sorts them by minimum step time.",
)
_SAVE_HLO = flags.DEFINE_string("save_hlo", None, "File for the optimised HLO text.")
mains.define_flags()

# Macros that a leaf requires from the user, but that do not change the compiled step.
_USER_MACROS = ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH")

_TABLE_HEAD = """\
# What a step needs on pods of every size

Made by `python -m prottrans_jax.precompile --table=docs/precompile.md ...`: each line
is the trainer's own step, compiled without the hardware. Memory is what the compiler
assigns to one device (arguments and temporaries). "recomputed" is compiled FLOPs over
the model's. The three times follow from the chip's published peaks
(`costs/hardware.py`). **"MFU at most" uses the longest of them as step time: it assumes
that compute, memory and interconnect overlap perfectly, so a real step takes longer. No
step has been timed on a TPU.** "compiler" is the version of libtpu. Layouts
whose arguments and temporaries exceed the memory are not listed: the compiler itself
refuses only temporaries that do.

## Choosing a layout

A layout is a scheme (`PARTITIONING`), the size of the mesh axis "model"
(`MODEL_PARALLEL`) and a rematerialisation policy (`REMAT_POLICY`). One command compares
several layouts: it compiles each and ranks them by the minimum time of a step:

    python -m prottrans_jax.precompile --gin_file=prot_t5_xl.gin --topology=v3:16x32 \\
        --compare=fully_sharded:save_attention,2d_sequence:8:full --table=table.md

**The leaf sets the layout, the mesh file the number of devices.** The best layout
depends on the model and its batch more than on the slice. So each leaf of `gin/` sets
the layout with the best bound on the hardware in its header, with the second best in a
comment. Files of `gin/meshes/` set only `NUM_DEVICES` and fit every leaf. On a slice
where another layout is better, set it with `--gin.PARTITIONING=...` and so on, which
override all files. "fully_sharded", "2d" and "2d_sequence" need a d_model that is a
multiple of the mesh axis "data".

T5X's own step with the same shapes, full rematerialisation and parameters sharded over
both axes needs 3.72 GiB per core for XL at batch 4,096 and 4.03 GiB for XXL at 2,048 on
v3:16x32. "2d_sequence" needs less because it also shards the residual stream that every
layer keeps, along the sequence over the model axis. Small slices use `--max_rows=32`.

"""
_COLUMNS = (
    *("leaf", "slice", "devices", "data x model", "scheme", "remat", "batch"),
    *("microbatches", "GiB per device", "of", "recomputed", "compute s", "memory s"),
    *("interconnect s", "binds", "MFU at most", "compiler"),
)
_KEY_COLUMNS = 8  # Columns with settings; the others hold results.


@dataclasses.dataclass(frozen=True)
class Layout:
    """Settings of a leaf that change the sharding and memory, but not the results."""

    scheme: str
    model: int
    remat: str

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Reads scheme:remat or scheme:model:remat.

        Raises:
          UsageError: the text has another form, or an unknown scheme or policy.
        """
        from prottrans_jax import partitioning
        from prottrans_jax.layers import compute

        scheme, *model, remat = text.split(":") if ":" in text else (text, "")
        for value, name, choices in (
            (scheme, "scheme", partitioning.SCHEMES),
            (remat, "remat policy", compute.REMAT_POLICIES),
        ):
            if value not in choices:
                raise building.UsageError(
                    f"--compare={text}: {name} {value!r} is not one of "
                    f"{', '.join(choices)}. Give scheme:remat or scheme:model:remat."
                )
        if len(model) > 1 or not all(m.isdecimal() and int(m) for m in model):
            raise building.UsageError(
                f"--compare={text}: {':'.join(model)!r} is not a size of the mesh axis "
                "'model'. Give scheme:remat or scheme:model:remat."
            )
        return cls(scheme, int(model[0]) if model else 1, remat)

    @property
    def bindings(self) -> list[str]:
        """Gin statements."""
        return [
            f"PARTITIONING = {self.scheme!r}",
            f"MODEL_PARALLEL = {self.model}",
            f"REMAT_POLICY = {self.remat!r}",
        ]

    def __str__(self) -> str:
        model = f" over {self.model}" if self.model > 1 else ""
        return f"{self.scheme}{model}, {self.remat}"


def main(argv: Sequence[str]) -> int:
    """Compiles for every topology in --topology; see the module's docstring."""
    return stop_signals.guarded("precompile", "", lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise building.UsageError(f"Unexpected argument {argv[1]!r}; see --help.")
    if not _TOPOLOGY.value:
        raise building.UsageError("Give a --topology, e.g. --topology=v3:16x32.")
    _outputs()
    import jax

    from prottrans_jax.training import step_report

    # Also on a TPU machine: nothing runs on devices.
    jax.config.update("jax_platforms", "cpu")
    try:
        topologies = [step_report.describe(name) for name in _TOPOLOGY.value]
    except ValueError as error:
        raise building.UsageError(str(error)) from error
    layouts: Sequence[Layout | None] = [Layout.parse(x) for x in _COMPARE.value]
    _parse(None)  # Mistakes end here, before anything is compiled.
    leaf = pathlib.Path(flags.FLAGS.gin_file[0]).name.removesuffix(".gin")
    all_fit = True
    for topology in topologies:
        reports: dict[Layout | None, Any] = {}
        refused: dict[Layout | None, str] = {}
        for layout in layouts or [None]:
            stop_signals.check()
            about = f" with {layout}" if layout else ""
            print(f"{leaf} on {topology.name}{about}", flush=True)
            try:
                report = _compile(leaf, topology, layout)
                if report.fits:
                    reports[layout] = report
                else:
                    print(
                        "Does not fit: arguments and temporaries together exceed the "
                        "memory.\n",
                        flush=True,
                    )
                    refused[layout] = "does not fit into the memory"
            except step_report.OutOfMemoryError as error:
                print(f"Does not fit. The compiler says:\n{error}\n", flush=True)
                refused[layout] = "does not fit into the memory"
            except ValueError as error:
                if layout is None:
                    raise building.UsageError(str(error)) from error
                print(f"Not possible: {error}\n", flush=True)
                refused[layout] = "not possible, see above"
        if len(layouts) > 1:
            print("\n".join(_ranking(topology.name, reports, refused)) + "\n")
        all_fit = all_fit and bool(reports)
    return 0 if all_fit else 3


def _compile(
    leaf: str, topology: "step_report.Topology", layout: Layout | None
) -> "step_report.Report":
    """Compiles one step, prints its report, adds it to the table if it fits."""
    from prottrans_jax.training import step_report

    _parse(layout)
    parts, settings = _parts(topology)
    report, text = step_report.compile_step(**parts)
    print(f"{report}\n", flush=True)
    table, hlo = _outputs()
    if hlo is not None:
        writing.write_synced(hlo, text.encode())
    if table is not None and report.fits:
        add_line(table, table_line(leaf, settings, report))
    return report


def _outputs() -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """Files of --table and --save_hlo.

    Raises:
      UsageError: One is a URL, or a file that this program did not create.
    """
    outputs = []
    for flag, start in ((_TABLE, _TABLE_HEAD.partition("\n")[0]), (_SAVE_HLO, "HloM")):
        path = None
        if flag.value:
            try:
                path = paths.local(flag.value, f"--{flag.name}")
                ownership.refuse_foreign_file(path, start.encode())
            except ValueError as error:
                raise building.UsageError(str(error)) from error
        outputs.append(path)
    return outputs[0], outputs[1]


def _ranking(slice_name: str, reports: dict, refused: dict) -> list[str]:
    """Lines of layouts by minimum time of a step, then those that failed."""
    lines = [f"Layouts on {slice_name}, the best first (perfect overlap assumed):"]
    for layout, report in sorted(reports.items(), key=lambda item: item[1].bound[1]):
        lines.append(
            f"  {report.bound[1]:8.4f} s  MFU at most {100 * report.mfu:4.1f} %  "
            f"{report.peak_bytes / 2**30:5.2f} GiB  {report.bound[0]:12s}  {layout}"
        )
    lines += [f"  {layout}: {why}" for layout, why in refused.items()]
    return lines


def _parse(layout: Layout | None) -> None:
    mains.parse_flags(layout.bindings if layout else (), unneeded=_USER_MACROS)


def _parts(topology: "step_report.Topology") -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `compile_step`, and the settings that the table shows."""
    import jax

    from prottrans_jax.training import trainer

    train = building.bound(trainer.train)
    data = building.current().parameters(train["train_data"])
    objective = building.build(train["objective"])
    partitioner = building.build(train["partitioner"], devices=topology.devices)
    rows, lengths = data["batch_size"], data["feature_lengths"]
    slices = partitioner.mesh.shape["data"]
    if rows % slices:
        raise building.UsageError(
            f"A batch of {rows} rows does not divide over the {slices} slices of the "
            f"mesh axis 'data' on {topology.name}. Set --gin.BATCH_SIZE to a multiple, "
            "or name a smaller topology."
        )
    shapes = {
        feature: jax.ShapeDtypeStruct(
            (rows, lengths["targets" if feature.startswith("decoder") else "inputs"]),
            "float32" if feature.endswith("weights") else "int32",
        )
        for feature in objective.features
    }
    microbatches = train.get("num_microbatches", 1)
    if _MAX_ROWS.value:
        microbatches = max(microbatches, rows // (slices * _MAX_ROWS.value))
    settings = {
        "scheme": partitioner.scheme,
        "remat": objective.model.compute.remat_policy,
    }
    return {
        "objective": objective,
        "optimizer": building.build(train["optimizer"]),
        "partitioner": partitioner,
        "batch_shapes": shapes,
        "num_microbatches": microbatches,
        "topology": topology,
    }, settings


def table_line(
    leaf: str, settings: dict[str, Any], report: "step_report.Report"
) -> str:
    """The report as a line of the table of `_TABLE_HEAD`."""
    gib = 2**30
    chip, costs = report.topology.chip, report.costs
    cells = [
        leaf,
        report.topology.name,
        f"{len(report.topology.devices):,}",
        " x ".join(str(size) for size in report.mesh.values()),
        settings["scheme"],
        settings["remat"],
        f"{report.batch_size:,}",
        f"{report.num_microbatches}",
        f"{report.peak_bytes / gib:.2f}",
        f"{chip.hbm_bytes / gib:.0f}",
        f"{costs.flops / report.model_flops:.2f}",
        *(f"{seconds:.3f}" for seconds in report.seconds.values()),
        report.bound[0],
        f"{100 * report.mfu:.0f} %",
        report.compiler,
    ]
    return f"| {' | '.join(cells)} |"


def add_line(path: pathlib.Path, line: str) -> None:
    """Adds a line to the table; replaces a line with the same settings."""
    lines = path.read_text().splitlines() if path.exists() else []
    lines = [old for old in lines if old.startswith("| ") and "| leaf |" not in old]
    kept = {tuple(old.split("|")[1 : _KEY_COLUMNS + 1]): old for old in lines}
    kept[tuple(line.split("|")[1 : _KEY_COLUMNS + 1])] = line

    def order(key: tuple[str, ...]) -> tuple:
        return key[0], key[1].split(":")[0], int(key[2].replace(",", "")), key

    rows = [kept[key] for key in sorted(kept, key=order)]
    path.parent.mkdir(parents=True, exist_ok=True)
    head = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    path.write_text(_TABLE_HEAD + "\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    mains.run(main)
