"""The ratios of Switchable and Sparse Switchable Normalization."""
