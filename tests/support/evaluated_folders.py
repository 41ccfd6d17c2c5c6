"""Folders of rendered people for tests of the evaluation, and a model and encoders that know them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from genaffect_jax.checkpoints.components import FaceEncoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import AuxiliaryConfig, DataConfig, SamplingConfig
from genaffect_jax.data.photos.reader import PhotoReader
from genaffect_jax.errors import ExpressionError
from genaffect_jax.evaluation.figures import evaluate
from genaffect_jax.evaluation.folder_people import open_folder_people
from genaffect_jax.evaluation.people import request
from genaffect_jax.evaluation.procedural_people import true_images
from genaffect_jax.evaluation.protocol import Protocol
from genaffect_jax.evaluation.readings import Evaluators, read_person
from genaffect_jax.expressions.action_units import WIDTH, neutral
from genaffect_jax.expressions.grammar import parse_expression, parse_expressions
from genaffect_jax.io.image_grid import write_png

SIDE = 64
PROTOCOL = Protocol(people=4, expressions=3, dial_people=0, dial_words=("joy",))
NOTHING = np.zeros((0, SIDE, SIDE, 3), np.uint8)


class Model:
    """Stands for a pipeline: knows people by their references, and answers with `answer(person, vectors)`."""

    def __init__(self, answer=None, photos=None, data=None, refuses=()):
        self.name, self.calls, self.refuses = "model, step 1", [], refuses
        self.answer = answer or (lambda person, vectors: true_images(person, vectors, SIDE))
        self.config = SimpleNamespace(
            model=SimpleNamespace(image_size=SIDE),
            data=data or DataConfig(),
            train=SimpleNamespace(seed=0),
            auxiliary=AuxiliaryConfig(),
        )
        self.faces, self.photos, self.prompts = FaceEncoders(None, None), photos or PhotoReader("none"), None

    def parse(self, text):
        if text in self.refuses:
            raise ExpressionError(f"expression '{text}': not known to this model")
        return parse_expressions(text)

    def __call__(self, identity, expressions, settings):
        vectors = np.stack([e.vector for e in self.parse(expressions)])
        (person,) = (p for p in range(8) if (true_images(p, neutral()[None], SIDE)[0] == identity).all())
        self.calls.append(person)
        return SimpleNamespace(images=self.answer(person, vectors))


class Colours:
    """Stands for an expression encoder without action units: three numbers for each image."""

    name, width, licence, checksum = "colours", 3, "Apache-2.0", "c" * 64

    def __call__(self, images):
        return (images.astype(np.float32) / 255).mean((1, 2))


class Directions(Colours):
    """Stands for an identity encoder."""

    def __call__(self, images):
        colours = super().__call__(images) + 1e-6
        return colours / np.linalg.norm(colours, axis=-1, keepdims=True)


class GreyReader(Colours):
    """Stands for an encoder of action units: reads joy, as much as the image is bright."""

    width = WIDTH

    def __call__(self, images):
        return images.mean((1, 2, 3))[:, None] / 100 * parse_expression("joy").vector


QUICK = Evaluators(Directions(), Colours())


def render(root, person, *labels):
    """Writes images of a person of the protocol, `<label>.png` in a folder of the person."""
    for label in labels:
        vector = parse_expression(label.split("_")[0]).vector
        write_png(true_images(person, vector[None], SIDE)[0], root / f"p{person}" / f"{label}.png")


def opened(root, model=None, protocol=PROTOCOL):
    return open_folder_people(root, protocol, model or Model(), RunDir(root.parent / "run"))


def figures_of(people, model, evaluators):
    def read(place):
        person = people[place]
        images = model(person.identity, request(person.labels), SamplingConfig()).images
        dials = NOTHING
        if place < people.protocol.dial_people:
            dials = model(person.identity, request(people.protocol.dials), SamplingConfig()).images
        return read_person(place, people, evaluators, images, person.true_images(SIDE), dials)

    return evaluate([read(place) for place in range(len(people))], people)
