"""The training loop and what surrounds it.

  trainer                         `train`: the loop
  train_state, train_step         layout of the state; the compiled step
  evaluation, infeed              means over a split; batches made ahead
  logbook, metrics                log lines; places for scalars
  event_files, logged_steps, earlier_logs    logs of a run that is resumed
  step_report                     what a step costs on devices that are not here

May import checkpoints, costs, distributed, files, objectives, optimizers, partitioning.
Imports no TensorFlow and no gin: a list of batches will do.
"""
