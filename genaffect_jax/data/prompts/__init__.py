"""Prompts and the table of their embeddings."""
