"""The package's version, where all of its parts can read it."""

__version__ = "0.1.0"
