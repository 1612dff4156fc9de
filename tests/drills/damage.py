"""Files truncated, deleted or with one bit flipped: noticed, never read as others."""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import logging
import os
import pathlib
import random
import re
import shutil

from cases import checkpoint_cases
from drills import trials
from prottrans_jax.data.records import record_writer, store


def _truncate(path: pathlib.Path, rng: random.Random) -> str:
    size = rng.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"cut to {size} bytes"


def _delete(path: pathlib.Path, rng: random.Random) -> str:
    path.unlink()
    return "deleted"


def _flip(path: pathlib.Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    at, bit = rng.randrange(len(content)), rng.randrange(8)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {at} flipped"


KINDS: dict[str, Callable[[pathlib.Path, random.Random], str]] = {
    "truncated": _truncate,
    "deleted": _delete,
    "flipped bit": _flip,
}
# Orbax writes these at the commit, after the hashing. Nothing reads them, so their loss
# changes nothing.
_NEVER_READ = ("_CHECKPOINT_METADATA", "commit_success.txt")


def checkpoints(
    work: pathlib.Path, count: int, *, seed: int = 0
) -> Iterator[trials.Trial]:
    """Damages a file of the newest step: it is named, and the step before is used."""
    rng = random.Random(seed)
    good, copy = work / "good", work / "copy"
    checkpoint_cases.save_steps(good, [1, 2])
    expected = {step: checkpoint_cases.make_state(step) for step in (1, 2)}
    shutil.copytree(good, copy)
    for kind, path in _damages(good / "2", count, rng):
        file = copy / "2" / path
        how = KINDS[kind](file, rng)
        with _logged() as log:
            restored = checkpoint_cases.restore(copy)
        lost = ""
        if path.name in _NEVER_READ:
            if restored.step != 2:
                lost = f"step {restored.step} was used"
        elif restored.step != 1:
            lost = f"step {restored.step} was used"
        elif not any(str(file) in line for line in log):
            lost = f"the file was not named: {log}"
        try:
            checkpoint_cases.assert_bit_equal(restored.state, expected[restored.step])
        except AssertionError:
            lost = f"step {restored.step} was restored with other values"
        what = "file without a use" if path.name in _NEVER_READ else "file"
        yield trials.Trial(
            f"{what} {kind}: step {restored.step}", f"{path}, {how}", lost
        )
        shutil.copyfile(good / "2" / path, file)


def records(work: pathlib.Path, count: int, *, seed: int = 0) -> Iterator[trials.Trial]:
    """Damages a file of a prepared folder; reads all its records."""
    rng = random.Random(seed)
    good, copy = work / "good", work / "copy"
    with record_writer.Writer(good, name="drill") as writer:
        for _ in range(3):
            writer.add_shard("train", _proteins(rng, 1500))
        writer.add_shard("validation", _proteins(rng, 100))
    opened = store.open(good)
    expected = {name: _records(opened.split(name)) for name in opened.manifest.splits}
    shutil.copytree(good, copy)
    for kind, path in _damages(good, count, rng):
        file = copy / path
        how = KINDS[kind](file, rng)
        noticed, lost = _read_damaged(copy, file, expected)
        # In the padding between blocks a bit changes no record; --verify sees it too.
        if not lost and not any(str(file) in line for line in _verify(copy)):
            lost = "prepare --verify does not name the file"
        what = path.name.partition(".")[2].replace(".npy", "")
        yield trials.Trial(f"{what} {kind}: {noticed}", f"{path}, {how}", lost)
        shutil.copyfile(good / path, file)


def _read_damaged(
    folder: pathlib.Path, file: pathlib.Path, expected: dict[str, list]
) -> tuple[str, str]:
    """Reads a folder with a damaged file.

    Returns:
      When the damage was noticed, and what is wrong with that; "" if nothing is.
    """
    when = "noticed at start"
    try:
        opened = store.open(folder)
        splits = {name: opened.split(name) for name in expected}
        when = "noticed at reading"
        if {name: _records(split) for name, split in splits.items()} == expected:
            return "no effect on records", ""
        return "not noticed", "other records were read"
    except ValueError as error:  # DamageError is one.
        message = str(error)
    is_named = str(file) in message or (not file.exists() and str(folder) in message)
    if not is_named:
        return when, f"the file is not named: {message}"
    if when == "noticed at reading" and not _WHICH.search(message):
        return when, f"no record is named: {message}"
    return when, ""


# The record, or the number of records where the file's own index is damaged.
_WHICH = re.compile(r"record \d+ |\d+ readable records|cannot be read")


def _verify(folder: pathlib.Path) -> list[str]:
    try:
        return store.verify(folder)
    except ValueError as error:  # No manifest: not a finished folder.
        return [f"{folder / 'manifest.json'}: {error}"]


def _records(split: store.RecordSplit) -> list[tuple[bytes, bytes]]:
    return split.begin(range(split.num_records)).records()


def _proteins(rng: random.Random, count: int) -> Iterator[tuple[str, str]]:
    for _ in range(count):
        length = rng.randrange(1, 300)
        residues = "".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=length))
        yield f"P{rng.randrange(10**9)}", residues


def _damages(
    folder: pathlib.Path, count: int, rng: random.Random
) -> Iterator[tuple[str, pathlib.Path]]:
    """`count` pairs of a kind and a file: all pairs before one comes again."""
    files = [file.relative_to(folder) for file in checkpoint_cases.files_of(folder)]
    pairs = [
        (kind, file)
        for kind in KINDS
        for file in files
        if kind == "deleted" or (folder / file).stat().st_size
    ]
    rng.shuffle(pairs)
    yield from itertools.islice(itertools.cycle(pairs), count)


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """Messages logged in the context; they are not printed."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger("absl")
    handlers, logger.handlers = logger.handlers, [Collector()]
    propagates, logger.propagate = logger.propagate, False
    try:
        yield messages
    finally:
        logger.handlers, logger.propagate = handlers, propagates
