"""Prepared corpora: array_record shards, a length index and a manifest in one folder.

input_sources, dataset_sources                     inputs: FASTA, SeqIO tasks, TFDS
preparing, worker_pool, spill, spill_files         making a folder, out of core
record_writer, store, shard_readers, manifest      writing, reading and verifying it
shard_cache                                        copies of shards of a bucket
corpora                                            finding it by name
tfds_builders                                      the same corpora as TFDS data sets
"""
