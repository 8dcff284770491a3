"""The command lines: what tools/ calls."""
