"""Biology from embeddings: labelled proteins, heads, their training and metrics.

  labelled            a labelled protein, and the task that it belongs to
  heads               small networks that predict labels from vectors
  tmbed_cnn           the networks of TMbed
  published_heads     heads in torch files of others
  head_objective      loss of a head, for the trainer
  head_scores         metrics of a trained head
  stored_vectors      vectors of an encoder, computed once, read from disk
  labelled_rows       batches of labelled proteins, for the trainer
  finetuning          trains a head with one call
  head_folders        folders of trained heads
  predicting          labels of the proteins in FASTA files, with the embedding job
  prediction_files    predictions as TSV, JSON Lines and annotated FASTA
  published_tasks     published tasks, with their classes in the order of their source
  readers             files of labelled proteins
  leaks               proteins that are in two splits
  outcomes            labels beside predictions
  prediction_metrics  metrics by name
  class_metrics       metrics of classes, from confusion matrices
  segment_overlap     SOV'99 of secondary structures
  number_metrics      metrics of regressions
  intervals           metrics with bootstrap intervals; differences of two models
  evaluation_sets     evaluations with published results: files, splits, head, metric
  evaluation_data     their proteins, read from a data folder
  published_results   figures of the ProtTrans paper
  autoeval            trains and tests heads on these evaluations
  head_fitting        trains a head in memory
  evaluation_tables   their results as a table
  in_training         the same for the model of a training run

May import checkpoints, embed, encoders, files, interop, layers, models, objectives,
optimizers, partitioning, proteins, training and types. No TensorFlow, no gin.
"""
