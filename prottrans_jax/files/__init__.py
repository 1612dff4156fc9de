"""Paths, locks and atomic files, for all commands.

  paths       paths from users: `~`, URLs, `-`
  locks       lock against two processes that write the same output
  ownership   refuses to replace or delete files that this program did not create
  writing     files and folders created atomically, renamed and synchronised
  digests     SHA-256 of files, bytes, JSON values and streams
  appending   files to which whole records are appended
  memory_map  memory-mapped files
  casting     arrays to another dtype

Imports no other room.
"""
