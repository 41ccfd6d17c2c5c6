"""Runs an evaluation in a folder: samples every person, reads the images, keeps the readings, and can be continued."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from genaffect_jax.config import SamplingConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.evaluation.diversity import Diversity, with_seeds
from genaffect_jax.evaluation.figures import Evaluation, evaluate
from genaffect_jax.evaluation.protocol import FIRST_PERSON, INTENSITIES, Protocol, word_names, word_vectors
from genaffect_jax.evaluation.readings import Evaluators, Readings, person_name, read_person, true_images
from genaffect_jax.evaluation.similarity import SimilarityEncoders, with_similarity
from genaffect_jax.expressions.action_units import WIDTH
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.image_grid import contact_sheet, write_png
from genaffect_jax.io.progress import progress_bar
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder
from genaffect_jax.pipeline import Pipeline

SETTINGS, _COST = "evaluation.json", "cost.json"
# Images side by side in a person's sheet.
_COLUMNS = 12


@dataclass(frozen=True)
class EvaluationRun:
    """One evaluation of one model; its settings decide every figure."""

    pipeline: Pipeline
    """The model."""
    protocol: Protocol
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
        """All that decides the figures, as JSON."""
        return {
            "model": self.pipeline.name,
            "protocol": dataclasses.asdict(self.protocol) | {"dial_words": list(self.protocol.dial_words)},
            "sampling": json.loads(json.dumps(dataclasses.asdict(self.sampling))),
            "evaluators": self.evaluators.names(),
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
    """Time of rendering true images, reading all images, and writing."""

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


def load_evaluators(pipeline: Pipeline, identity: str, expression: str) -> Evaluators:
    """Reads the evaluators, and checks that they can judge this model.

    Raises:
        WeightsError: a file is missing or damaged, or of the other kind.
        ConfigError: an encoder is one that the model gets its conditions from, or an expression encoder has other
            channels than action units.
    """
    evaluators = Evaluators(load_identity_encoder(identity), load_expression_encoder(expression))
    for field, encoder, source in (
        ("identity_evaluator", evaluators.identity, identity),
        ("expression_evaluator", evaluators.expression, expression),
    ):
        if encoder.checksum[:12] in pipeline.name:
            raise ConfigError(
                f"is the encoder that {pipeline.name} is conditioned on; a model cannot be judged by it", field=field,
                found=source,
            )  # fmt: skip
    if evaluators.expression.width != WIDTH:
        raise ConfigError(
            f"reads {evaluators.expression.width} numbers, must read the {WIDTH} action-unit channels",
            field="expression_evaluator",
            found=expression,
        )
    return evaluators


def run_evaluation(run: EvaluationRun, out: Path) -> Evaluation:
    """Samples and reads whoever is not yet in the folder, and computes the figures.

    Memory holds one person's images and all readings. Readings are equal for equal settings on the same devices.

    Raises:
        ConfigError: `out` holds an evaluation with other settings or other files, or the model may have seen the
            people.
        DataError: the readings of a person are damaged.
        MemoryLimitError: see `Pipeline.__call__`.
    """
    seen = run.pipeline.config.data
    if seen.source == "procedural" and seen.identities > FIRST_PERSON:
        raise ConfigError(
            f"was trained on {seen.identities} procedural avatars; the people of the evaluation are unseen up to "
            f"{FIRST_PERSON}",
            field="model",
            found=run.pipeline.name,
        )
    _claim(out, run.settings)
    files = [out / "people" / f"{person:04d}.npz" for person in range(run.protocol.people)]
    missing = [person for person, file in enumerate(files) if not file.exists()]
    with progress_bar("people", len(missing)) as step:
        for i, person in enumerate(missing):
            begun = time.perf_counter()
            images, dials = _sample(run, person)
            seeds = _sample_seeds(run, person)
            sampled = time.perf_counter()
            words = run.protocol.words(person)
            truth = true_images(person, word_vectors(words), images.shape[1])
            sheet = _sheet([word_names()[i] for i in words], images, truth)
            write_png(sheet, files[person].with_suffix(".png"), fast=True)
            readings = read_person(person, run.protocol, run.evaluators, images, truth, dials)
            readings = with_similarity(readings, run.similarity, images, truth)
            if len(seeds):
                readings = with_seeds(readings, run.evaluators, seeds)
            readings.save(files[person])  # written last: a person with readings is done
            if i:  # the first person of a process waits for compilation
                Cost.read(out).plus(sampled - begun, time.perf_counter() - sampled).write(out)
            step(1)
    return evaluate([Readings.load(file) for file in files], run.protocol, run.sampling.seed)


def _sample(run: EvaluationRun, person: int) -> tuple[UInt8[np.ndarray, "V S S 3"], UInt8[np.ndarray, "D*I S S 3"]]:
    """The images of a person's words and dials."""
    names = word_names()
    images = _sample_set(run, person, [names[i] for i in run.protocol.words(person)])
    # One set for each word: shared tokens, where they are on, are those of one dial.
    each, dials = len(INTENSITIES), run.protocol.dials if person < run.protocol.dial_people else []
    sets = [_sample_set(run, person, dials[i : i + each]) for i in range(0, len(dials), each)]
    return images, np.concatenate(sets) if sets else images[:0]


def _sample_seeds(run: EvaluationRun, person: int) -> UInt8[np.ndarray, "K N S S 3"]:
    """Some of a person's words under several seeds, one set for each seed; none for people without diversity."""
    if run.diversity is None or person >= run.diversity.people:
        return np.zeros((0, 0, 0, 0, 3), np.uint8)
    words = run.protocol.words(person)
    names = [word_names()[i] for i in words[run.diversity.places(len(words))]]
    seeds = range(run.sampling.seed, run.sampling.seed + run.diversity.seeds)
    runs = [dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, seed=seed)) for seed in seeds]
    return np.stack([_sample_set(one, person, names) for one in runs], axis=1)


def _sample_set(run: EvaluationRun, person: int, expressions: list[str]) -> UInt8[np.ndarray, "E S S 3"]:
    """The images of one set of a person."""
    anchors = None if run.sampling.anchors is None else min(run.sampling.anchors, len(expressions))
    settings = dataclasses.replace(run.sampling, anchors=anchors)
    return run.pipeline(person_name(person), ", ".join(expressions), settings=settings).images


def _sheet(
    names: list[str], images: UInt8[np.ndarray, "V S S 3"], truth: UInt8[np.ndarray, "V S S 3"]
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
        other = [key for key, value in settings.items() if before.get(key) != value]
        if other:
            raise ConfigError(
                f"holds an evaluation with another {' and '.join(other)}; choose another folder", field="out", found=out
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("is or holds files that are no evaluation; choose another folder", field="out", found=out)
    (out / "people").mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps(settings, indent=2) + "\n")
