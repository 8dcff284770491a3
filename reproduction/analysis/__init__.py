"""Parameters and FLOPs of models, and what their layers have learned: see :mod:`.collect`."""
