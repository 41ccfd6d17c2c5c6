"""Images: procedural avatars, sources, and the input pipeline."""
