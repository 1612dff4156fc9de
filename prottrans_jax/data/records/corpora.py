"""Prepared folders by the name of their corpus; imports nothing heavy."""

import os
import pathlib

from prottrans_jax.data.records import manifest
from prottrans_jax.files import paths

# Environment variable with the folder that holds one folder a corpus.
DATA_DIR = "PROTTRANS_DATA_DIR"


def sample_dir() -> pathlib.Path:
    """The prepared sample of Swiss-Prot proteins that the package ships."""
    return pathlib.Path(__file__).parent / "sample"


def find(corpus: str, data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Folder of a prepared corpus.

    Args:
      corpus: "uniref50", "uniref100", "bfd": `data_dir`/NAME, or `data_dir` itself if
        its manifest bears that name. "sample": shipped with the package. "fasta":
        `data_dir` itself, whatever it was prepared from.
      data_dir: defaults to the environment variable PROTTRANS_DATA_DIR.

    Raises:
      ValueError: there is none: where it was looked for, and the command to make it;
        or `data_dir` is a URL.
    """
    if corpus == "sample":
        return sample_dir()
    if data_dir:
        base: pathlib.Path | None = paths.local(data_dir, "data_dir")
    else:
        base = paths.of_environment(DATA_DIR)
    searched = []
    if base:
        own = base
        if corpus != "fasta":
            searched.append(own / corpus)
        searched.append(own)
        for folder in searched:
            if not (folder / manifest.FILE).exists():
                continue
            # data_dir itself: only if it is what was asked for.
            if folder != own or corpus in ("fasta", manifest.Manifest.read(own).name):
                return folder
    target = base or pathlib.Path("DIR")
    source = "YOUR.fasta.gz" if corpus == "fasta" else f"{corpus}.fasta.gz"
    looked = ", ".join(map(str, searched)) or (
        f"nowhere: neither data_dir nor the environment variable {DATA_DIR} is set"
    )
    raise ValueError(
        f"corpus {corpus!r} is not prepared. Looked for a {manifest.FILE} in: "
        f"{looked}. Make it with: python -m prottrans_jax.prepare --input {source} "
        f"--output {target if corpus == 'fasta' else target / corpus}"
        + ("" if base else f" and set {DATA_DIR}={target}")
    )
