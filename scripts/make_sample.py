"""Makes the sample that the package ships: real proteins, no two of them alike.

  apt-get install metastudent-data mmseqs2 ncbi-blast+
  python scripts/make_sample.py --output prottrans_jax/data/records/sample

Debian's metastudent-data holds the GO-annotated part of Swiss-Prot 2014_01 as BLAST
databases. They are written out (blastdbcmd) and clustered at 50 % identity over 80 % of
a member (mmseqs easy-linclust), and representatives of clusters are drawn evenly: each
has the same chance, whatever the size of its cluster. Linear-time clustering misses a
few pairs, so training proteins that a full search finds within 50 % of a validation
protein are replaced.

The result depends on the package and on --seed alone.
"""

import argparse
import hashlib
import pathlib
import subprocess
import tempfile

from prottrans_jax.data.records import input_sources, preparing
from prottrans_jax.proteins import fasta

SOURCE = "/usr/share/metastudent-data/dataset_201401"
MIN_LENGTH, MAX_LENGTH = 30, 2000  # residues; leaves out 2 % of the proteins

ATTRIBUTION = """\
The proteins in this folder are from UniProtKB/Swiss-Prot, release 2014_01
(https://www.uniprot.org), made available by the UniProt Consortium under the Creative
Commons Attribution 4.0 International licence (CC BY 4.0,
https://creativecommons.org/licenses/by/4.0/). Ids are UniProtKB accessions.

  The UniProt Consortium. UniProt: the Universal Protein Knowledgebase in 2025.
  Nucleic Acids Res. 53:D609-D617 (2025).

They were taken from the Debian package metastudent-data {version} (Tobias Hamp,
Rostlab; packaged under GPL-2+) by scripts/make_sample.py with --seed={seed}.

Changes made: entries clustered at 50 % sequence identity, one representative kept of
each of {train} + {validation} randomly drawn clusters (training + validation), lengths
{low} to {high} residues, annotation removed, order shuffled. No training protein is
within 50 % identity (over 80 % of either sequence) of a validation protein.
"""


def main() -> None:
    """Does it all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=pathlib.Path, default=pathlib.Path(SOURCE))
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--train", type=int, default=7000)
    parser.add_argument("--validation", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        proteins = read_databases(args.source, folder)
        drawn = draw(representatives(proteins, folder), args.seed)
        validation = drawn[: args.validation]
        candidates = drawn[args.validation :][: args.train + args.train // 10]
        close = similar(proteins, validation, candidates, folder)
        train = [c for c in candidates if c not in close][: args.train]
        print(f"{len(close)} training candidates are close to a validation protein")
        report = preparing.prepare(
            [
                input_sources.of_examples(
                    f"metastudent-data/{split}",
                    [(name, proteins[name]) for name in names],
                    split,
                )
                for split, names in [("train", train), ("validation", validation)]
            ],
            args.output,
            name="swiss_prot_sample",
            overwrite=True,
        )
    (args.output / "ATTRIBUTION").write_text(
        ATTRIBUTION.format(
            version=run("dpkg-query", "-W", "-f=${Version}", "metastudent-data"),
            seed=args.seed,
            train=len(train),
            validation=len(validation),
            low=MIN_LENGTH,
            high=MAX_LENGTH,
        )
    )
    for name, split in report.manifest.splits.items():
        print(f"{name}: {split.num_records} proteins, {split.num_residues} residues")
    total = sum(p.stat().st_size for p in args.output.iterdir())
    print(f"{total / 1e6:.2f} MB in {args.output}")


def run(*command: str) -> str:
    """Standard output of a command, which must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def read_databases(source: pathlib.Path, folder: pathlib.Path) -> dict[str, bytes]:
    """Accession -> sequence, each distinct sequence under one accession."""
    proteins: dict[str, bytes] = {}
    for ontology in ("BPO", "CCO", "MFO"):
        path = folder / f"{ontology}.fasta"
        database = source / ontology / "goasp.fasta"
        run(
            *("blastdbcmd", "-db", str(database), "-dbtype", "prot"),
            *("-entry", "all", "-outfmt", "%f", "-out", str(path)),
        )
        for record in fasta.read([path]):
            # >A8X481|GO:0005737,GO:0005886
            accession = record.name.partition(b"|")[0].decode()
            proteins.setdefault(accession, record.residues)
        path.unlink()
    first: dict[bytes, str] = {}
    for accession in sorted(proteins):
        first.setdefault(proteins[accession], accession)
    return {accession: proteins[accession] for accession in sorted(first.values())}


def representatives(proteins: dict[str, bytes], folder: pathlib.Path) -> list[str]:
    """One accession of each cluster of proteins of fitting length."""
    path = write_fasta(proteins, list(proteins), folder / "all.fasta")
    run(
        *("mmseqs", "easy-linclust", str(path), str(folder / "cluster")),
        *(str(folder / "tmp"), "--min-seq-id", "0.5", "-c", "0.8", "--cov-mode", "1"),
    )
    lines = (folder / "cluster_cluster.tsv").read_text().splitlines()
    names = sorted({line.split("\t")[0] for line in lines})
    print(f"{len(proteins)} sequences in {len(names)} clusters")
    return [n for n in names if MIN_LENGTH <= len(proteins[n]) <= MAX_LENGTH]


def draw(names: list[str], seed: int) -> list[str]:
    """All names in a random order that depends on the seed and on each name alone."""
    return sorted(names, key=lambda n: hashlib.sha256(f"{seed} {n}".encode()).digest())


def similar(
    proteins: dict[str, bytes],
    validation: list[str],
    train: list[str],
    folder: pathlib.Path,
) -> set[str]:
    """Training proteins within 50 % identity of a validation protein."""
    query = write_fasta(proteins, validation, folder / "validation.fasta")
    target = write_fasta(proteins, train, folder / "train.fasta")
    close: set[str] = set()
    for coverage in ("1", "2"):  # of the target, of the query
        hits = folder / f"hits{coverage}.tsv"
        run(
            *("mmseqs", "easy-search", str(query), str(target), str(hits)),
            *(str(folder / "tmp"), "--min-seq-id", "0.5", "-c", "0.8"),
            *("--cov-mode", coverage, "-s", "7.5", "--format-output", "target"),
        )
        close.update(hits.read_text().split())
    return close


def write_fasta(
    proteins: dict[str, bytes], names: list[str], path: pathlib.Path
) -> pathlib.Path:
    """Writes the named proteins."""
    with path.open("wb") as out:
        for name in names:
            out.write(b">%b\n%b\n" % (name.encode(), proteins[name]))
    return path


if __name__ == "__main__":
    main()
