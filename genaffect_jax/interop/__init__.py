"""Weights and text embeddings of other libraries, read and written."""
