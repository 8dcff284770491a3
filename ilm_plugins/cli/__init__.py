"""The commands: a module for each, whose ``run`` takes the arguments parsed by ``parsers``."""
