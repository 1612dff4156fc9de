"""FASTA to embedding files: batches, pooling, committed shards, output formats.

`job` is the whole; `embedder` computes; `writers` and `formats` write and read files.

May import costs, files, interop, kernels, layers and proteins. No TensorFlow, no gin.
"""
