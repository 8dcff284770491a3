"""A run of the command ``train``: its options, processes, environment and record."""
