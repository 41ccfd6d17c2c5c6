"""Training data: sources of images, photos, prompts, and the input pipeline."""
