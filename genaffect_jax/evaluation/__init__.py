"""Evaluation of a trained model on people that it has never seen: sampling, reading, figures, report."""
