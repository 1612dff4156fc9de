"""Likelihoods of residues: scores of proteins and variants, in-fill, contacts.

  from prottrans_jax import load_model, scoring
  scorer = scoring.Scorer(load_model("prot_bert"))
  scorer.variants("PRTEINO", ["P1A", "P1A:R2C"])

  likelihoods  what each family predicts about a residue, and from which others
  scorers      `Scorer`: logits, pseudo-perplexity, variants, all substitutions
  rows         batches of rows with bounded tokens
  mutations    A1C:D2E, checked against the wild type
  proteingym   variants in ProteinGym's CSV, Spearman's correlation
  infilling    the most probable amino acids for unknown residues
  contacts     from the categorical Jacobian, or by regression on attention maps
  contact_maps  known contacts, and the precision of predicted ones
  fasta_job    what the jobs share: records of a FASTA file, progress, report
  score_job    a FASTA file to a file of scores
  contact_job  a FASTA file to a file of contacts
  score_files  tables and arrays, written atomically

May import embed, encoders, files, kernels, models, proteins and types. No TensorFlow,
no gin.
"""

from prottrans_jax.scoring.infilling import fill
from prottrans_jax.scoring.scorers import Perplexity, Scorer

__all__ = ["Perplexity", "Scorer", "fill"]
