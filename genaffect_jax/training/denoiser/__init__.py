"""Training of the denoiser."""
