"""Makes losses on purpose: `python tests/drills/run.py NAME --trials N`.

Prints each trial and a table; exit status 1 if anything was lost. docs/reliability.md
lists the drills with their results.
"""

import argparse
from collections.abc import Callable, Iterator
import functools
import os
import pathlib
import sys
import tempfile

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from drills import buckets, commands, damage, hosts, layouts, resume, trials

Drill = Callable[..., Iterator[trials.Trial]]
DRILLS: dict[str, Drill] = {
    "kills": resume.ended_at_random,
    "checkpoints": damage.checkpoints,
    "records": damage.records,
    "full_disks": commands.full_disks,
    "stopped_commands": commands.stopped,
    "meshes": layouts.meshes,
    "threads": layouts.threads,
    "buckets": buckets.killed,
    "buckets_s3": functools.partial(buckets.killed, store="s3"),
    "buckets_2x4": functools.partial(buckets.killed, topology="2x4"),
    "second_trainers": layouts.second_trainers,
    "signals": functools.partial(resume.ended_at_random, how="signal"),
}
DRILLS |= {
    f"{name}_{topology}": functools.partial(drill, topology=topology)
    for name, drill in (("lost_hosts", hosts.lost), ("nan_on_a_host", hosts.nonfinite))
    for topology in ("2x1", "2x4", "4x2")
}
DRILLS["cut_off_default_limits"] = functools.partial(
    hosts.lost, losses=("cut off, default limits",)
)
DRILLS |= {
    f"kills_{family}": functools.partial(resume.ended_at_random, family=family)
    for family in resume.FAMILIES
}
DRILLS |= {
    f"{name}_{topology}": functools.partial(DRILLS[name], topology=topology)
    for name in ("kills", "signals")
    for topology in ("4", "2x2")
}


def main() -> int:
    """Runs the drill that the flags name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=DRILLS)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=pathlib.Path, help="kept; default: removed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or pathlib.Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        found = DRILLS[args.name](work, args.trials, seed=args.seed)
        done = trials.report(args.name, found)
    return int(any(trial.lost for trial in done))


if __name__ == "__main__":
    sys.exit(main())
