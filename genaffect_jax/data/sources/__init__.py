"""Sources of training images."""
