"""Finds prepared folders by the name of their corpus; imports nothing heavy."""

import os
import pathlib

from prottrans_jax.data.records import manifest
from prottrans_jax.files import paths

# Environment variable with the folder that holds one folder per corpus.
DATA_DIR = "PROTTRANS_DATA_DIR"


def sample_dir() -> pathlib.Path:
    """The prepared sample of Swiss-Prot proteins that is part of the package."""
    return pathlib.Path(__file__).parent / "sample"


def find(corpus: str, data_dir: str | os.PathLike | None = None) -> paths.Place:
    """Folder of a prepared corpus.

    Args:
      corpus: "uniref50", "uniref100", "bfd": `data_dir`/NAME, or `data_dir` itself if
        its manifest has that name. "sample": part of the package. "fasta": `data_dir`
        itself, prepared from any input.
      data_dir: defaults to the environment variable PROTTRANS_DATA_DIR.

    Raises:
      ValueError: there is no such folder (lists the searched folders and the command to
        make one), or `data_dir` is a URL that is not of a bucket.
      OSError: a request to a bucket failed.
    """
    if corpus == "sample":
        return sample_dir()
    if data_dir:
        base: paths.Place | None = paths.place(data_dir, "data_dir")
    else:
        named = os.environ.get(DATA_DIR)
        base = paths.place(named, DATA_DIR) if named else None
    searched = []
    if base:
        if corpus != "fasta":
            searched.append(base / corpus)
        searched.append(base)
        for folder in searched:
            if not (folder / manifest.FILE).exists():
                continue
            # data_dir itself: only if it holds this corpus.
            if folder != base or corpus in ("fasta", manifest.Manifest.read(base).name):
                return folder
    target = base or pathlib.Path("DIR")
    source = "YOUR.fasta.gz" if corpus == "fasta" else f"{corpus}.fasta.gz"
    places = ", ".join(map(str, searched)) or (
        f"nowhere: neither data_dir nor the environment variable {DATA_DIR} is set"
    )
    raise ValueError(
        f"corpus {corpus!r} is not prepared. Looked for a {manifest.FILE} in: "
        f"{places}. Make it with: python -m prottrans_jax.prepare --input {source} "
        f"--output {target if corpus == 'fasta' else target / corpus}"
        + ("" if base else f" and set {DATA_DIR}={target}")
    )
