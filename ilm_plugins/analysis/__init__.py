"""What models are made of, and what their layers have learned: see :mod:`.collect`."""
