"""The commands: a module for each, whose ``run`` takes what ``parsers`` parsed."""
