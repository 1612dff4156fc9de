"""Checkpoints of a run: saved, verified, and opened from any format.

  checkpointing   `Checkpointer`: asynchronous saves, retention, restoring
  stored_steps    steps of a run, read for another run or a frozen encoder
  manifests       the SHA-256 manifest that every checkpoint must match
  bucket_arrays   tensorstore's drivers for arrays in buckets
  stored_arrays   arrays of a checkpoint: names, comparison, reading
  orbax_messages  drops what Orbax logs besides the error that it raises
  run_identity    the configuration that identifies a run, as a tree
  earlier_identity  reads such configurations of earlier versions
  opening         parameters of a run, of Hugging Face, T5X or Mesh-TensorFlow
  t5x_states      the whole state of a T5X run, to go on in either trainer
  new_folders     what convert and export share: a folder made from a checkpoint

May import distributed, files, interop, layers, models and types. Imports no TensorFlow
and no gin.
"""
