"""`prottrans contacts`: predicts which residues are in contact."""

import argparse

from prottrans_jax.commands import console, embedding, progress, score
from prottrans_jax.files import ownership
from prottrans_jax.proteins import plurals


def add_contacts(commands) -> None:
    """Adds `prottrans contacts`."""
    parser = console.add_command(
        commands, "contacts", _contacts, "predict contacts of residues"
    )
    add = parser.add_argument
    score.add_input(add)
    add(
        *("-o", "--output"),
        required=True,
        help=".npz or .h5: a map per protein; .tsv .csv .jsonl: a row per pair",
    )
    add(
        "--method",
        default="jacobian",
        choices=("jacobian", "attention"),
        help="categorical Jacobian (default), or regression on attention maps",
    )
    add("--weights", help="npz of a regression on attention maps; see --fit")
    add(
        "--fit",
        metavar="NPZ",
        help="fit a regression to the contacts or distances of this file, arrays "
        "[residues, residues] by protein, and write its weights to the output",
    )
    add(
        "--compare",
        metavar="NPZ",
        help="print the precision against the contacts or distances of this file",
    )
    score.add_policies(add)
    score.add_run(add)


def _contacts(arguments: argparse.Namespace) -> int:
    from prottrans_jax.scoring import contact_job, contact_maps, contacts, score_files

    _check(arguments)
    # Report mistakes before the model is loaded.
    references = arguments.fit or arguments.compare
    ownership.refuse_same(
        [x for x in (references, arguments.weights) if x], [arguments.output]
    )
    weights = contacts.load(arguments.weights) if arguments.weights else None
    maps = contact_maps.read(references) if references else {}
    every = (*score_files.TABLES, *score_files.ARRAYS)
    suffixes = (".npz",) if arguments.fit else every
    model = score.load_model(arguments, suffixes)
    with progress.Lines(silent=arguments.no_progress or arguments.quiet) as lines:
        job = contact_job.ContactJob(
            model,
            arguments.input,
            arguments.output,
            score.policies(arguments),
            lines.show,
            max_tokens=arguments.batch_tokens,
        )
        if arguments.fit:
            report = job.fit(maps)
        else:
            report = job.predict(weights, maps if arguments.compare else None)
    if not arguments.quiet:
        console.say(
            f"{plurals.count(report.proteins, 'protein')} in "
            f"{console.duration(report.seconds)}. Wrote {report.output}"
        )
    for label, (value, count) in report.precision.items():
        print(f"{label}: {value:.4f} over {plurals.count(count, 'protein')}")
    if report.without_map:
        console.say(
            f"Without known contacts: {len(report.without_map):,} "
            f"({console.some(report.without_map)})"
        )
    return max(embedding.say_left_out(report.skipped), 3 * bool(report.without_map))


def _check(arguments: argparse.Namespace) -> None:
    """Raises ValueError if flags contradict each other."""
    if arguments.fit and (arguments.weights or arguments.compare):
        raise ValueError("--fit writes weights: drop --weights and --compare.")
    if arguments.fit and arguments.method != "attention":
        raise ValueError("--fit is for --method attention.")
    if arguments.weights and arguments.method != "attention":
        raise ValueError("--weights is for --method attention.")
    if arguments.method == "attention" and not (arguments.weights or arguments.fit):
        raise ValueError(
            "--method attention needs --weights NPZ; --fit NPZ makes such a file."
        )
