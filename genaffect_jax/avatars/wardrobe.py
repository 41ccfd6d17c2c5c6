"""What an avatar wears and stands before, apart from who it is."""

from __future__ import annotations

import dataclasses

from genaffect_jax.avatars.identity import Identity

# The accent also colours beanies and headscarves: that somebody wears one is the person's, its colour is not.
WORN: tuple[str, ...] = ("outfit", "outfit_colour", "outfit_accent", "background", "background_colour")


def redress(identity: Identity, other: Identity) -> Identity:
    """`identity` in the clothes and before the background of `other`; face, hair, glasses and earrings stay."""
    return dataclasses.replace(identity, **{name: getattr(other, name) for name in WORN})
