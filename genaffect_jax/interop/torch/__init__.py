"""PyTorch code that is copied into exported folders."""
