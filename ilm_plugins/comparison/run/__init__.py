"""The runs of a comparison: their folders, processes and outcomes."""
