"""Nucleotides are told from proteins, by file and by record."""

import numpy as np
import pytest

from prottrans_jax.proteins import fasta, fasta_blocks, nucleotides


def letters(seed, alphabet, length):
    generator = np.random.default_rng(seed)
    return "".join(generator.choice(list(alphabet), length))


def protein(seed, length=150):
    return letters(seed, "ACDEFGHIKLMNPQRSTVWY", length)


def dna(seed, length=150, alphabet="ACGT"):
    return letters(seed, alphabet, length)


def check(path, *sequences, block_bytes=fasta.BLOCK_BYTES):
    """Names of the records that are left, and the problems."""
    path.write_text("".join(f">r{i}\n{x}\n" for i, x in enumerate(sequences)))
    names, problems = [], []
    for block in fasta.blocks(path, block_bytes=block_bytes):
        parsed, more = nucleotides.check(
            block, fasta_blocks.parse(block), "The way out."
        )
        names += [name.decode() for name in parsed.names]
        problems += more
    return names, problems


@pytest.mark.parametrize(
    "sequences",
    [
        [dna(0)],
        [dna(0).lower()],
        [dna(0, alphabet="ACGU")],
        [dna(0, alphabet="ACGTN")],
        # Ambiguity codes of IUPAC.
        [dna(0) + "RYSWKM"],
        # Reads too short to be judged alone.
        [dna(seed, 30) for seed in range(4)],
        [dna(0), dna(1), dna(2, 2000), protein(3, 100)],
    ],
)
def test_a_file_of_nucleotides_is_refused(tmp_path, sequences):
    path = tmp_path / "x.fasta"
    with pytest.raises(nucleotides.NucleotidesError) as error:
        check(path, *sequences)
    for words in (f"{path}: ", "% of ", "'r0' in line 1", "The way out."):
        assert words in str(error.value)


def test_one_record_of_nucleotides_among_proteins_is_a_problem_of_its_own(tmp_path):
    sequences = [protein(0), dna(1, 60), protein(2), protein(3)]
    names, [problem] = check(tmp_path / "x.fasta", *sequences)
    assert names == ["r0", "r2", "r3"]
    assert (problem.line, problem.name) == (3, "r1") and not problem.fatal
    assert (
        problem.reason == "nucleotides" and "100% of the 60 letters" in problem.detail
    )


def test_a_late_block_of_nucleotides_does_not_refuse_the_file(tmp_path):
    sequences = [protein(0, 400), dna(1, 400), dna(2, 400)]
    names, problems = check(tmp_path / "x.fasta", *sequences, block_bytes=100)
    assert names == ["r0"] and [p.line for p in problems] == [3, 5]


@pytest.mark.parametrize(
    "sequences",
    [
        # Antifreeze peptides of fish, of insects, a silk, a run of asparagines.
        ["ATAATAATAAATAATAATAAATAATAATAAA"],
        [
            "QCTGGADCTSCTGACTGCGNCPNAVTCTNSQHCVKANTCTGSTDCNTAQTCTNSKDCFEANTCTDSTNCYKATACTNSSGCPGH"
        ],
        ["GAGAGSGAGAGSGAGAGSGAGAGSGAGAGSGAGAGSGAGAGYGAGAGYGAGAGYGAGAGYGAGAGS"],
        ["MK" + "N" * 40 + "STLFEEDKVLIPWRQHYNNDELK"],
        ["MKT", "GAT", "ACA"],
        [],
    ],
)
def test_proteins_rich_in_these_letters_are_proteins(tmp_path, sequences):
    names, problems = check(tmp_path / "x.fasta", *sequences)
    assert len(names) == len(sequences) and not problems


@pytest.mark.parametrize("folder", ["corpus", "proteome", "messy"])
def test_no_real_protein_is_taken_for_nucleotides(shared, folder):
    number = 0
    for path in sorted((shared / "data" / folder).glob("*fasta*")):
        if path.name == "dna_by_mistake.fasta":
            continue
        for block in fasta.blocks(path):
            parsed, problems = nucleotides.check(block, fasta_blocks.parse(block), "")
            number += len(parsed.names)
            assert not problems
    assert number
