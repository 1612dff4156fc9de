"""Biology from embeddings: labelled proteins, heads, their training and metrics.

  labelled        a labelled protein, and the task that it belongs to

May import embed, encoders, files, interop, layers, models, proteins and types. No
TensorFlow, no gin.
"""
