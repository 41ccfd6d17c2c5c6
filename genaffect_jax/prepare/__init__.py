"""Preparation of data and weights for training."""
