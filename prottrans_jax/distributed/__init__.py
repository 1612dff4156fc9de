"""Several processes as one run: start, agreement, barriers, stop signals, watchdog.

Imports JAX and nothing else of the package. `stop_signals` imports the standard library
only and may be used everywhere.
"""
