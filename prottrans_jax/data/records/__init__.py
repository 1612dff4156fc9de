"""Prepared corpora: array_record shards, a length index and a manifest in one folder.

preparing, spill, record_writer, input_sources   making a folder, out of core
store, shard_readers, manifest                   reading and verifying it
corpora                                          finding it by name
tfds_builders                                    the same corpora as TFDS data sets
"""
