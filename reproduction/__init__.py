"""The laboratory: this project's own evidence, beside the package and not in its wheel."""
