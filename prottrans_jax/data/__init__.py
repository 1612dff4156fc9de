"""Host side of training: from FASTA to batches.

  records      the folder format: prepared once, read at random
  corruption   one file for each way to hide residues: the host half of an objective
  rows         which pieces share a row and in which order; `loader.RowLoader`
  seqio        sources, vocabularies and preprocessors of SeqIO tasks
  random_bits  hashes of seeds and indices in place of a generator

With `tasks/` the only user of TensorFlow and SeqIO. May import files and proteins.
"""
