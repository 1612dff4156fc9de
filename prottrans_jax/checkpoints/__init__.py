"""Checkpoints of a run: saved, verified, and opened from any format.

  checkpointing   `Checkpointer`: asynchronous saves, retention, restoring
  manifests       the SHA-256 manifest without which a checkpoint is not believed
  stored_arrays   arrays of a checkpoint, read one at a time
  run_identity    whether a directory holds the same run
  opening         parameters of a run, of Hugging Face, T5X or Mesh-TensorFlow

May import distributed, files, interop and models. Imports no TensorFlow and no gin.
"""
