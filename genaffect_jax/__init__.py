"""Avatar sets: one character, many expressions, always the same person."""

__version__ = "0.1.0"
