"""How gin files are checked without importing what they configure."""
