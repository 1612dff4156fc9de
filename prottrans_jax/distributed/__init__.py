"""Several processes as one run.

  start, roll_call      joining a run; who is missing if it does not start
  launchers             the other processes of a run: TPU hosts, SLURM, Open MPI ...
  local_devices         GPUs of a process under SLURM, Open MPI or torchrun
  coordination          keys in JAX's coordination service
  barriers              exchange of values between processes, with time limits
  agreement             same settings, data and packages on all hosts
  stopping              a stop signal that all processes obey at the same step
  metadata_server       where Google Cloud's metadata server is; what it says
  preemption            its notices of the end of a machine
  watchdog, peers       end a run that hangs or has lost a process
  supervisor            starts a command again when it ends early
  stop_signals          SIGTERM and SIGINT in programs of one process

Imports no other room. `stop_signals` imports the standard library only and may be used
everywhere.
"""
