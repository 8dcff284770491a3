"""Benchmarks: speed and memory of the layers, compared with the norms that they replace."""
