"""Ahead-of-time compilation for devices that need not be there."""
