"""FASTA to embedding files.

  job, settings, process        a whole job, its options, settings of its process
  inputs, sequence_input, keys  FASTA files; sequences in Python; keys of proteins
  chunks, batching              long proteins in pieces; plans of batches
  computing, embedder, forward, layerwise, pooling
                                the model on a batch, and its output pooled
  shards, merging               committed shards, and the output made of them
  writers, zarr_folder          output formats
  formats, damage, verifying    reading, reformatting and verifying outputs
  outputs, provenance, reuse    our own outputs: recognised, described, reused
  reports, progress_bar         figures of a job

May import costs, files, interop, kernels, proteins and types. No TensorFlow, no gin.
"""
