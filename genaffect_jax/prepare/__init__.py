"""What is done to data and weights before training."""
