"""Weights and text embeddings of other libraries, in and out. Import its modules; this one imports nothing."""
