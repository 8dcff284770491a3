"""The network of Exemplar Normalization."""
