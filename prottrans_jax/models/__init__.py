"""The six model families, one file each: configuration, layers, FLOPs.

May import layers and types.
"""
