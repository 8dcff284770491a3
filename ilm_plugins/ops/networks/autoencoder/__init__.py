"""The auto-encoder of ILM Norm and AssocNorm."""
