"""Biology from embeddings: labelled proteins, heads, their training and metrics.

  labelled            a labelled protein, and the task that it belongs to
  published_tasks     published tasks, with their classes in the order of their source
  readers             files of labelled proteins
  leaks               proteins that are in two splits
  outcomes            labels beside predictions
  prediction_metrics  metrics by name
  class_metrics       metrics of classes, from confusion matrices
  segment_overlap     SOV'99 of secondary structures
  number_metrics      metrics of regressions
  intervals           metrics with bootstrap intervals; differences of two models

May import embed, encoders, files, interop, layers, models, proteins and types. No
TensorFlow, no gin.
"""
