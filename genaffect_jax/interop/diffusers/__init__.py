"""Weights in the layouts of diffusers and of one-file SD3 checkpoints, LoRA files, and text encoders."""
