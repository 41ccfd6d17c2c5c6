"""A trained model as a diffusers folder that runs with PyTorch alone."""
