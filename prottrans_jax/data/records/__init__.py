"""Prepared corpora: array_record shards, a length index and a manifest in one folder.

preparing, spill, record_writer, input_sources   made, out of core
store, shard_readers, manifest                   read, verified
corpora                                          found by name
tfds_builders                                    the same as TFDS datasets
"""
