"""Prepared corpora: array_record shards, a length index and a manifest in one folder.

input_sources, dataset_sources                   FASTA, SeqIO tasks, TFDS data sets
preparing, worker_pool, spill, record_writer     making a folder, out of core
store, shard_readers, manifest                   reading and verifying it
corpora                                          finding it by name
tfds_builders                                    the same corpora as TFDS data sets
"""
