"""Leaf blocks shared by two or more families."""
