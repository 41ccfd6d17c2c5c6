"""What the evaluators read in the images of one person. Images are not kept: memory does not grow with the people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from genaffect_jax.data.face_encoders import ExpressionEncoder, IdentityEncoder
from genaffect_jax.errors import DataError
from genaffect_jax.evaluation.people import People
from genaffect_jax.evaluation.protocol import INTENSITIES
from genaffect_jax.expressions.action_units import WIDTH
from genaffect_jax.io.atomic import new_file
from genaffect_jax.metrics.image_quality import background_variation, edge_sharpness


@dataclass(frozen=True)
class Readings:
    """One person's V images and D dials of I intensities, as generated and as they truly are (`true_`)."""

    words: Int[np.ndarray, " V"]
    """Places of the words asked for; `people.NO_WORD` for other expressions."""
    wanted: Float[np.ndarray, "V W"]
    """Expression vectors asked for: action units, or with an encoder of other vectors `true_expression`."""
    identity: Float[np.ndarray, "V F"]
    """Embeddings of the generated images."""
    true_identity: Float[np.ndarray, "V F"]
    """Embeddings of the true images."""
    reference_identity: Float[np.ndarray, " F"]
    """Embedding of the reference."""
    expression: Float[np.ndarray, "V W"]
    """Expression vectors read in the generated images."""
    true_expression: Float[np.ndarray, "V W"]
    """The same of the true images."""
    reference_expression: Float[np.ndarray, " W"]
    """The same of the reference."""
    sharpness: Float[np.ndarray, " V"]
    """`metrics.image_quality.edge_sharpness` of each generated image; nan without rendered truth."""
    variation: Float[np.ndarray, ""]
    """`metrics.image_quality.background_variation` of the set; nan without rendered truth."""
    true_variation: Float[np.ndarray, ""]
    """The same of the true images."""
    dial_identity: Float[np.ndarray, "D I F"]
    """Embeddings along the generated dials; D is 0 for people without dials."""
    dial_expression: Float[np.ndarray, "D I W"]
    """Expression vectors along the generated dials."""
    true_dial_expression: Float[np.ndarray, "D I W"]
    """The same along the true dials; D is 0 where there are none."""
    seed_places: Int[np.ndarray, " S"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Places in `words` of the S words that were sampled under N seeds; S is 0 for people without them."""
    seed_identity: Float[np.ndarray, "S N F"] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    """Embeddings of a word's images under all seeds."""
    seed_expression: Float[np.ndarray, "S N W"] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    """Expression vectors read in the same images."""
    seed_deviation: Float[np.ndarray, " S"] = field(default_factory=lambda: np.zeros(0, np.float32))
    """`metrics.diversity.pixel_deviation` of the same images."""
    text_cosine: Float[np.ndarray, "V V"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """CLIP's cosines of each generated image (row) and the prompt of each word; V is 0 without CLIP."""
    true_text_cosine: Float[np.ndarray, "V V"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """The same of the true images."""
    dino: Float[np.ndarray, "V E"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """DINO's embeddings of the generated images; V is 0 without DINO."""
    true_dino: Float[np.ndarray, "V E"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """The same of the true images."""

    def save(self, path: Path) -> None:
        """Writes an `.npz` file, whole or not at all."""
        with new_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Readings:
        """Reads what `save` wrote.

        Raises:
            DataError: the file is damaged or of another version.
        """
        try:
            with np.load(path) as arrays:
                return cls(**{f.name: arrays[f.name] for f in fields(cls)})
        except Exception as e:  # a damaged zip file raises errors of many classes
            raise DataError(f"{path}: not readable as an evaluated person ({e}); delete it and it is made again") from e


@dataclass(frozen=True)
class Evaluators:
    """The encoders that read the images; no model is trained on them."""

    identity: IdentityEncoder
    expression: ExpressionEncoder

    def names(self) -> dict[str, str]:
        """Name and checksum of each."""
        encoders: Mapping[str, IdentityEncoder | ExpressionEncoder] = vars(self)
        return {kind: f"{encoder.name} {encoder.checksum[:12]}" for kind, encoder in encoders.items()}

    def preprocessing(self) -> dict[str, str]:
        """What each does to an image first, if it says so."""
        return {kind: getattr(encoder, "preprocessing", "not stated") for kind, encoder in vars(self).items()}


def read_person(
    place: int,
    people: People,
    evaluators: Evaluators,
    images: UInt8[np.ndarray, "V S S 3"],
    truth: UInt8[np.ndarray, "V S S 3"],
    dials: UInt8[np.ndarray, "D*I S S 3"],
) -> Readings:
    """Reads a person's generated images beside the true ones.

    Args:
        place: place of the person among the people.
        people: the people.
        evaluators: the encoders.
        images: generated for the person's expressions.
        truth: the true images of the same expressions.
        dials: generated for the protocol's dials; empty for people without dials.

    Raises:
        DataError: an image of the person can no longer be read.
    """
    person, side, rendered = people[place], images.shape[1], people.rendered
    reference = person.reference(side)[None]
    true_dials = person.true_dials(side) if len(dials) else dials

    def embeddings(*parts: UInt8[np.ndarray, "B S S 3"]) -> list[Float[np.ndarray, "B F"]]:
        return np.split(evaluators.identity(np.concatenate(parts)), np.cumsum([len(p) for p in parts])[:-1])

    def vectors(*parts: UInt8[np.ndarray, "B S S 3"]) -> list[Float[np.ndarray, "B W"]]:
        return np.split(evaluators.expression(np.concatenate(parts)), np.cumsum([len(p) for p in parts])[:-1])

    def by_dial(read: Float[np.ndarray, "D*I W"]) -> Float[np.ndarray, "D I W"]:
        return read.reshape(len(read) // len(INTENSITIES), len(INTENSITIES), read.shape[-1])

    identity, true_identity, reference_identity, dial_identity = embeddings(images, truth, reference, dials)
    expression, true_expression, reference_expression, dial, true_dial = vectors(
        images, truth, reference, dials, true_dials
    )
    nan = float("nan")
    return Readings(
        words=person.words,
        wanted=person.vectors if evaluators.expression.width == WIDTH else true_expression,
        identity=identity,
        true_identity=true_identity,
        reference_identity=reference_identity[0],
        expression=expression,
        true_expression=true_expression,
        reference_expression=reference_expression[0],
        sharpness=np.array([edge_sharpness(images[i], truth[i]) if rendered else nan for i in range(len(images))]),
        variation=np.array(background_variation(images, truth) if rendered else nan),
        true_variation=np.array(background_variation(truth, truth) if rendered else nan),
        dial_identity=by_dial(dial_identity),
        dial_expression=by_dial(dial),
        true_dial_expression=by_dial(true_dial),
    )
