"""FASTA to embedding files: batches, pooling, committed shards, output formats.

`job` runs a whole job; `embedder` runs the model; `writers` and `formats` write and
read files.

May import costs, files, interop, kernels, layers and proteins. No TensorFlow, no gin.
"""
