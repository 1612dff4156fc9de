"""Paths, locks and safe files: what every command does with places on disk.

  paths       every path that a user gives: `~`, URLs, `-`
  locks       the one lock that keeps two processes from writing one output
  ownership   what this program may replace or delete: only what it made
  writing     files that appear whole or not at all
  appending   files that grow by whole records
  memory_map  arrays of a file, mapped, not read
  casting     arrays to another dtype

Imports nothing else of the package.
"""
