"""Biology from embeddings: labelled proteins, heads, their training and metrics.

  labelled            a labelled protein, and the task that it belongs to
  published_tasks     published tasks, with their classes in the order of their source
  readers             files of labelled proteins

May import embed, encoders, files, interop, layers, models, proteins and types. No
TensorFlow, no gin.
"""
