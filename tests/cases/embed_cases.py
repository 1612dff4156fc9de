"""Tiny models and proteins that the tests of embedding share."""

import h5py
import jax
import numpy as np

from prottrans_jax.embed import job, settings
from prottrans_jax.interop import huggingface
from prottrans_jax.models import t5


def make_model(folder, seed, **sizes):
    """A T5 of 3 layers, with decoder, but for other `sizes`."""
    usual = {
        "vocab_size": 128,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "head_dim": 5,
        "d_model": 12,
        "d_ff": 17,
    }
    config = t5.T5Config(**usual | sizes)
    huggingface.write(folder, config, t5.init_params(config, jax.random.key(seed)))
    return folder


def random_proteins(count, seed=0, longest=90):
    generator = np.random.default_rng(seed)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWYX"))
    return {
        f"P{i}": "".join(generator.choice(letters, int(generator.integers(1, longest))))
        for i in range(count)
    }


def write_fasta(path, proteins):
    text = "".join(f">{name}\n{residues}\n" for name, residues in proteins.items())
    path.write_text(text, encoding="utf-8")
    return path


def embed(encoder, source, output, **options):
    """The job's report."""
    return job.embed_fasta(encoder, source, output, settings.Options(**options))


def embed_into(encoder, source, output, **options):
    """The output's path, for what is done with it next."""
    embed(encoder, source, output, **options)
    return output


def read(path):
    """The loop that UniProt's users know."""
    with h5py.File(path, "r") as file:
        return {key: value[()] for key, value in file.items()}


def stop_after(number):
    """A progress callback that stops the run in the midst of it."""

    def on_progress(progress):
        if progress.proteins == number:
            raise KeyboardInterrupt

    return on_progress
