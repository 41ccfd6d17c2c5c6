"""Runs an evaluation in a folder: samples every person, reads the images, keeps the readings, and can be continued."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from genaffect_jax.config import SamplingConfig
from genaffect_jax.config.sampling import LARGEST_SEED
from genaffect_jax.data.face_encoders import ExpressionEncoder
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.evaluation.diversity import Diversity, with_seeds
from genaffect_jax.evaluation.figures import Evaluation, evaluate
from genaffect_jax.evaluation.people import People, Person, request
from genaffect_jax.evaluation.protocol import INTENSITIES
from genaffect_jax.evaluation.readings import Evaluators, Readings, read_person
from genaffect_jax.evaluation.similarity import SimilarityEncoders, with_similarity
from genaffect_jax.expressions.action_units import WIDTH
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.image_grid import contact_sheet, write_png
from genaffect_jax.io.progress import progress_bar
from genaffect_jax.io.weight_file import checksum, resolve_weights
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder
from genaffect_jax.models.face_encoders.onnx_expression import ONNX_SUFFIX, OnnxExpressionEncoder
from genaffect_jax.pipeline import Pipeline

SETTINGS, _COST = "evaluation.json", "cost.json"
# Settings that a message explains.
_IN_WORDS = {"data": "data (the folder, a file or label in it, or who is left out)"}
# Images side by side in a person's sheet.
_COLUMNS = 12


@dataclass(frozen=True)
class EvaluationRun:
    """One evaluation of one model; its settings decide every figure."""

    pipeline: Pipeline
    """The model."""
    people: People
    """Who is sampled, with which expressions."""
    sampling: SamplingConfig
    """How."""
    evaluators: Evaluators
    """What reads the images."""
    similarity: SimilarityEncoders = dataclasses.field(default_factory=SimilarityEncoders)
    """CLIP and DINO, where they are given."""
    diversity: Diversity | None = None
    """Who is sampled under several seeds; None: nobody."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the figures, as JSON, and who the people are in words."""
        protocol = self.people.protocol
        return {
            "model": self.pipeline.name,
            "people": self.people.describe(),
            "data": self.people.settings,
            "protocol": dataclasses.asdict(protocol) | {"dial_words": list(protocol.dial_words)},
            "sampling": json.loads(json.dumps(dataclasses.asdict(self.sampling))),
            "evaluators": self.evaluators.names(),
            "preprocessing": self.evaluators.preprocessing(),
            **self.similarity.descriptions(),
            "diversity": None if self.diversity is None else dataclasses.asdict(self.diversity),
        }


@dataclass(frozen=True)
class Cost:
    """Time of an evaluation over all its starts, without the first person of each. No figure depends on it."""

    people: int = 0
    """People that were timed."""
    sampling_seconds: float = 0.0
    """Time of their images."""
    reading_seconds: float = 0.0
    """Time of getting true images, reading all images, and writing."""

    def plus(self, sampling: float, reading: float) -> Cost:
        """With one person more."""
        return Cost(self.people + 1, self.sampling_seconds + sampling, self.reading_seconds + reading)

    def write(self, out: Path) -> None:
        """Writes `cost.json`."""
        write_atomically(out / _COST, json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def read(cls, out: Path) -> Cost:
        """What `cost.json` holds; nothing if it is not there or damaged."""
        try:
            return cls(**json.loads((out / _COST).read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def describe(self) -> str:
        """One line for users."""
        if not self.people:
            return "time: not measured"
        sampling, reading = (s / self.people for s in (self.sampling_seconds, self.reading_seconds))
        share = reading / (sampling + reading)
        return f"time of a person: sampling {sampling:.2f} s, figures {reading:.2f} s ({share:.0%} of both)"


def load_evaluators(pipeline: Pipeline, identity: str, expression: str, any_vectors: bool = False) -> Evaluators:
    """Reads the evaluators, and checks that they can judge this model.

    Args:
        pipeline: the model.
        identity: `package:NAME` or a weight file.
        expression: the same, or the .json of an ONNX encoder.
        any_vectors: takes expression encoders whose vectors are no action units. Wanted is then what the encoder reads
            in a true image.

    Raises:
        WeightsError: a file is missing or damaged, or of the other kind.
        ConfigError: an encoder is one that the model gets its conditions from or was trained with in a loss, or an
            expression encoder has other channels than action units.
    """
    evaluators = Evaluators(load_identity_encoder(identity), _expression_evaluator(expression))
    known = _encoders_of(pipeline)
    for field, encoder, source in (
        ("identity_evaluator", evaluators.identity, identity),
        ("expression_evaluator", evaluators.expression, expression),
    ):
        if encoder.checksum in known:
            raise ConfigError(
                f"is the encoder that {pipeline.name} {known[encoder.checksum]}; a model cannot be judged by it",
                field=field,
                found=source,
            )
    if evaluators.expression.width != WIDTH and not any_vectors:
        raise ConfigError(
            f"reads {evaluators.expression.width} numbers, must read the {WIDTH} action-unit channels; other vectors "
            "can be compared with true images in a folder only",
            field="expression_evaluator",
            found=expression,
        )
    return evaluators


def _expression_evaluator(source: str) -> ExpressionEncoder:
    return OnnxExpressionEncoder(Path(source)) if source.endswith(ONNX_SUFFIX) else load_expression_encoder(source)


def _encoders_of(pipeline: Pipeline) -> dict[str, str]:
    """What the model has to do with each encoder that it knows, by checksum."""
    known = {}
    auxiliary = pipeline.config.auxiliary
    for weight, source in (
        (auxiliary.identity_weight, auxiliary.identity_encoder),
        (auxiliary.expression_weight, auxiliary.expression_encoder),
    ):
        if weight > 0:
            with suppress(WeightsError):  # the file may be gone: then it cannot be recognised
                known[checksum(resolve_weights(source))] = "was trained with in a loss"
    for encoder in (pipeline.faces.identity, pipeline.faces.expression):
        if encoder is not None:
            known[encoder.checksum] = "is conditioned on"
    return known


def run_evaluation(run: EvaluationRun, out: Path) -> Evaluation:
    """Samples and reads whoever is not yet in the folder, and computes the figures.

    Memory holds one person's images and all readings. Readings are equal for equal settings on the same devices.

    Raises:
        ConfigError: `out` holds an evaluation with other settings or other files, or the model may have seen the
            people.
        DataError: the readings of a person are damaged, or an image of a person can no longer be read.
        MemoryLimitError: see `Pipeline.__call__`.
    """
    people = run.people
    people.refuse_model(run.pipeline)
    _claim(out, run.settings)
    files = [out / "people" / f"{place:04d}.npz" for place in range(len(people))]
    missing = [place for place, file in enumerate(files) if not file.exists()]
    with progress_bar("people", len(missing)) as step:
        for i, place in enumerate(missing):
            begun = time.perf_counter()
            person = people[place]
            images, dials = _sample(run, person, with_dials=place < people.protocol.dial_people)
            seeds = _sample_seeds(run, person, place)
            sampled = time.perf_counter()
            truth = person.true_images(images.shape[1])
            write_png(_sheet(person.labels, images, truth), files[place].with_suffix(".png"), fast=True)
            readings = read_person(place, people, run.evaluators, images, truth, dials)
            readings = with_similarity(readings, run.similarity, images, truth)
            if len(seeds):
                readings = with_seeds(readings, run.evaluators, seeds)
            readings.save(files[place])  # written last: a person with readings is done
            if i:  # the first person of a process waits for compilation
                Cost.read(out).plus(sampled - begun, time.perf_counter() - sampled).write(out)
            step(1)
    return evaluate([Readings.load(file) for file in files], people, run.sampling.seed)


def _sample(
    run: EvaluationRun, person: Person, with_dials: bool
) -> tuple[UInt8[np.ndarray, "V S S 3"], UInt8[np.ndarray, "D*I S S 3"]]:
    """The images of a person's expressions and dials."""
    images = _sample_set(run, person, person.labels)
    # One set for each word: shared tokens, where they are on, are those of one dial.
    each, dials = len(INTENSITIES), run.people.protocol.dials if with_dials else []
    sets = [_sample_set(run, person, dials[i : i + each]) for i in range(0, len(dials), each)]
    return images, np.concatenate(sets) if sets else images[:0]


def _sample_seeds(run: EvaluationRun, person: Person, place: int) -> UInt8[np.ndarray, "K N S S 3"]:
    """Some of a person's expressions under several seeds, one set for each seed; none for people without diversity."""
    if run.diversity is None or place >= run.diversity.people:
        return np.zeros((0, 0, 0, 0, 3), np.uint8)
    labels = [person.labels[i] for i in run.diversity.places(len(person.labels))]
    seeds = [(run.sampling.seed + i) % (LARGEST_SEED + 1) for i in range(run.diversity.seeds)]
    runs = [dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, seed=seed)) for seed in seeds]
    return np.stack([_sample_set(one, person, labels) for one in runs], axis=1)


def _sample_set(run: EvaluationRun, person: Person, labels: Sequence[str]) -> UInt8[np.ndarray, "E S S 3"]:
    """The images of one set of a person."""
    anchors = None if run.sampling.anchors is None else min(run.sampling.anchors, len(labels))
    settings = dataclasses.replace(run.sampling, anchors=anchors)
    return run.pipeline(person.identity, request(labels), settings=settings).images


def _sheet(
    names: Sequence[str], images: UInt8[np.ndarray, "V S S 3"], truth: UInt8[np.ndarray, "V S S 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Generated images, the true image of each below it."""
    tiles, labels = [], []
    for first in range(0, len(names), _COLUMNS):
        row = slice(first, first + _COLUMNS)
        missing = [np.full_like(images[0], 255)] * max(0, first + _COLUMNS - len(names)) if first else []
        for part, kind in ((images, ""), (truth, "true")):
            tiles += [*part[row], *missing]
            labels += [*(kind or name for name in names[row]), *("" for _ in missing)]
    return contact_sheet(tiles, labels, columns=min(_COLUMNS, len(names)))


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Makes the folder that of these settings, or finds that it is."""
    record = out / SETTINGS
    if record.exists():
        try:
            before = json.loads(record.read_text())
        except ValueError as e:
            raise ConfigError(f"its {SETTINGS} is damaged ({e}); choose another folder", field="out", found=out) from e
        other = [_IN_WORDS.get(key, key) for key in settings if key != "people" and before.get(key) != settings[key]]
        if other:
            raise ConfigError(
                f"holds an evaluation with another {' and '.join(other)}; choose another folder", field="out", found=out
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("is or holds files that are no evaluation; choose another folder", field="out", found=out)
    (out / "people").mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps(settings, indent=2) + "\n")
