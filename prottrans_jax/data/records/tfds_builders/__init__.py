"""UniRef50, UniRef100 and BFD as TFDS data sets of {"id", "sequence"}.

  tfds build prottrans_jax/data/records/tfds_builders/uniref50.py --data_dir=... \
      [--manual_dir=FOLDER_WITH_uniref50.fasta.gz]
  python -m prottrans_jax.prepare --tfds=uniref50 --tfds_data_dir=... --output=...

or in one step, without TFDS: `python -m prottrans_jax.prepare --input=FASTA`.

`tfds build FILE` requires exactly one builder in the file: `uniref50`, `uniref100` and
`bfd` derive theirs from `base`.
"""
