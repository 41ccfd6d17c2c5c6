"""Conversion of ArcFace weights."""
