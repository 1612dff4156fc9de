"""The six families, one file each."""
