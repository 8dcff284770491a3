"""Data sets that the package generates itself."""
