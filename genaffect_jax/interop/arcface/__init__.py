"""ArcFace weights."""
