"""The attentions of Attentive Normalization."""
