"""Procedural avatars: sampled people drawn with any expression."""

from genaffect_jax.data.avatars.drawing import draw
from genaffect_jax.data.avatars.identity import Identity, sample_identity

__all__ = ["Identity", "draw", "sample_identity"]
