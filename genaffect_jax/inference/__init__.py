"""Sampling avatar sets with a trained model: settings, the jitted program, chunking, the saved set."""
