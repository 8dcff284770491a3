"""Experiments with the layers: comparisons of norms, the papers' tables, analysis."""
