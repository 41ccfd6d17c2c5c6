"""Weights, configurations and text encoders in the layout of diffusers."""
