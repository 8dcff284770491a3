"""The command lines; the scripts in tools/ call their ``main`` functions."""
