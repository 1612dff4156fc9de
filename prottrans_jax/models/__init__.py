"""The six families, one file each: architecture, layers written out, sizes.

May import layers and types.
"""
