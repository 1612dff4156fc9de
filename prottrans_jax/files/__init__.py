"""Paths, locks and atomic files, on this machine or in a bucket, for all commands.

  paths       paths from users: `~`, places in buckets, `-`
  buckets     folders of gs:// and s3://, and how they differ from those of a disk
  gcs         gcsfs with errors that name the object, and conditional writes
  s3          s3fs with the same
  folders     content of a folder, copied to and from buckets
  locks       lock against two processes that write the same output
  leases      the same in a bucket
  ownership   refuses to replace or delete files that this program did not create
  writing     files and folders created atomically, renamed and synchronised
  digests     SHA-256 of files, bytes, JSON values and streams
  appending   files to which whole records are appended
  json_text   JSON from files that others may have made
  memory_map  memory-mapped files
  casting     arrays to another dtype

Imports no other room.
"""
