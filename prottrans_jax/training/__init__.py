"""The training loop and its parts.

  trainer                         `train`: the loop
  train_state, train_step         layout of the state; the compiled step
  run_settings                    settings of the loop, in groups
  best_steps                      the best validation metric, and early stopping
  resuming                        the first state, or that of a checkpoint of this run
  saving, profiling               retry or stop after a failed save; profiles of steps
  goodput                         where the time of a run went, over all restarts
  replicas, integrity             replicas of parameters compared; silent corruption
  loss_spikes, rewinding          losses far above the usual; back to a checkpoint
  evaluation, infeed              means over a split; batches prefetched in a thread
  downstream_evaluation           metrics of other tasks while the model trains
  logbook, metrics                log lines; writers of scalars
  wandb_writer                    a writer of scalars for Weights & Biases
  event_files, logged_steps, earlier_logs    logs of a resumed run
  step_report                     cost of a step, compiled for absent devices

May import checkpoints, costs, distributed, files, partitioning and types. Objectives
and optimizers are arguments. Imports no TensorFlow and no gin: the loop accepts any
loader, e.g. a list of batches.
"""
