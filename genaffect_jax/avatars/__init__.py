"""Procedural avatars: sampled people drawn with any expression."""

from genaffect_jax.avatars.identity import Identity, sample_identity
from genaffect_jax.avatars.renderer import render

__all__ = ["Identity", "render", "sample_identity"]
