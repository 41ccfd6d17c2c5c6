"""Protocols of identity encoders and expression encoders.

Conditioning, exemplars and metrics read faces through these two protocols only. The avatar encoders of this package
(`models.face_encoders.encoder`) implement them.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8


@runtime_checkable
class IdentityEncoder(Protocol):
    """Images of faces to unit vectors; the cosine of two vectors is the similarity of the persons."""

    @property
    def name(self) -> str:
        """Name of the encoder, for reports and files made with it."""
        ...

    @property
    def width(self) -> int:
        """Numbers in one vector, W."""
        ...

    @property
    def licence(self) -> str:
        """Licence of the weights: an SPDX name, or a sentence where there is none."""
        ...

    @property
    def checksum(self) -> str:
        """SHA-256 of the weight file, 64 hexadecimal digits."""
        ...

    def __call__(self, images: UInt8[np.ndarray, "B S S 3"]) -> Float32[np.ndarray, "B W"]:
        """The vectors, each of Euclidean length 1, of square RGB images of any size.

        Raises:
            TypeError: the images are not uint8.
            ValueError: they have another shape.
        """
        ...


@runtime_checkable
class ExpressionEncoder(Protocol):
    """Images of faces to expression vectors; the avatar encoders return `expressions.action_units` channels."""

    @property
    def name(self) -> str:
        """Name of the encoder, for reports and files made with it."""
        ...

    @property
    def width(self) -> int:
        """Numbers in one vector, W."""
        ...

    @property
    def licence(self) -> str:
        """Licence of the weights: an SPDX name, or a sentence where there is none."""
        ...

    @property
    def checksum(self) -> str:
        """SHA-256 of the weight file, 64 hexadecimal digits."""
        ...

    def __call__(self, images: UInt8[np.ndarray, "B S S 3"]) -> Float32[np.ndarray, "B W"]:
        """The expression vectors of square RGB images of any size.

        Raises:
            TypeError: the images are not uint8.
            ValueError: they have another shape.
        """
        ...
