"""People of an image folder: one image of each is the reference, the others are held-out truth."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.data.photos.align_folder import ALIGNED
from genaffect_jax.data.photos.reader import Align, PhotoReader
from genaffect_jax.data.prompts.table import prompt_for
from genaffect_jax.data.sources.folder import FolderSource, open_folder
from genaffect_jax.errors import ConfigError, DataError, ExpressionError
from genaffect_jax.evaluation.people import NO_WORD, People, Person, named
from genaffect_jax.evaluation.protocol import Protocol, word_names
from genaffect_jax.evaluation.trained_people import trained_people
from genaffect_jax.expressions.action_units import neutral
from genaffect_jax.pipeline import Pipeline

SOURCE = "folder"
_TRAINED = "the model was trained on them"

# The image of a file at a side.
Read = Callable[[Path, int], UInt8[np.ndarray, "S S 3"]]


@dataclass(frozen=True, eq=False)
class FolderPerson(Person):
    """A person with image files."""

    root: Path
    """The folder."""
    reference_file: str
    """The reference, below the folder."""
    neutral_reference: bool
    """Whether it shows the neutral face."""
    files: tuple[str, ...]
    """The true image of each expression."""
    image_size: int
    """Side of the reference that the pipeline gets."""
    read: Read = field(repr=False)
    """Reads and aligns a file."""

    @property
    def identity(self) -> UInt8[np.ndarray, "S S 3"]:
        return self.reference(self.image_size)

    def reference(self, side: int) -> UInt8[np.ndarray, "S S 3"]:
        return self._load(self.reference_file, side)

    def true_images(self, side: int) -> UInt8[np.ndarray, "V S S 3"]:
        return np.stack([self._load(file, side) for file in self.files])

    def true_dials(self, side: int) -> UInt8[np.ndarray, "0 S S 3"]:
        return np.zeros((0, side, side, 3), np.uint8)

    def faults(self) -> dict[str, str]:
        """The files that cannot be read or aligned, each with the reason."""
        found = {}
        for file in (self.reference_file, *self.files):
            try:
                self.read(self.root / file, self.image_size)
            except DataError as e:
                found[file] = str(e)
        return found

    def without(self, files: Collection[str]) -> FolderPerson:
        """The person without some of the true images."""
        kept = [i for i, file in enumerate(self.files) if file not in files]
        return replace(
            self,
            labels=tuple(self.labels[i] for i in kept),
            words=self.words[kept],
            vectors=self.vectors[kept],
            files=tuple(self.files[i] for i in kept),
        )

    def _load(self, file: str, side: int) -> UInt8[np.ndarray, "S S 3"]:
        path = self.root / file
        try:
            return self.read(path, side)
        except DataError as e:
            raise DataError(f"{path}: was readable when the folder was checked, but is no longer: {e}") from e


class FolderPeople(People):
    """People of an image folder; `open_folder_people` makes it."""

    rendered = False

    def __init__(
        self,
        source: FolderSource,
        protocol: Protocol,
        people: Sequence[FolderPerson],
        left_out: Mapping[str, str],
        photos: PhotoReader,
    ) -> None:
        self.protocol = replace(protocol, people=len(people), dial_people=min(protocol.dial_people, len(people)))
        self._source, self._people, self._left_out, self._photos = source, tuple(people), dict(left_out), photos

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "source": SOURCE,
            "folder": str(self._source.root.resolve()),
            "fingerprint": self._source.fingerprint(),
            "align": self._photos.align,
            "face_models": None if self._photos.models is None else str(self._photos.models),
            "references": {person.name: person.reference_file for person in self._people},
            "left_out": self._left_out,
        }

    def describe(self) -> str:
        people, folder = self._people, self._source.root
        everyone = len({example.identity for example in self._source.examples})
        counts = [len(person.files) for person in people]
        numbers = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])
        words = sum(int((person.words != NO_WORD).sum()) for person in people)
        resting = sum(person.neutral_reference for person in people)
        if resting == len(people):
            reference = "each person's neutral image"
        else:
            reference = f"the neutral image of {resting} people, and the first image by name of the others"
        return (
            f"{len(people)} of {everyone} people in the folder {folder}, {sum(counts)} held-out images ({numbers} of "
            f"each person) whose labels are asked for; {words} are single words. The reference is {reference}. Dials "
            f"of {self.protocol.dial_people} people, without true images."
            + (f" Left out: {named(self._left_out)}." if self._left_out else "")
        )

    def __getitem__(self, place: int) -> FolderPerson:
        return self._people[place]

    def refuse_model(self, pipeline: Pipeline) -> None:
        """Refuses none: the people that the model was trained on have been left out."""


def open_folder_people(root: Path, protocol: Protocol, pipeline: Pipeline, run_dir: RunDir) -> FolderPeople:
    """Reads an image folder, and chooses who can be evaluated.

    The reference of a person is the neutral image, of several the first by name; without one, the first image by name.
    Left out are, each with its reason: files that cannot be read; images whose label the model has no vector or prompt
    for; people with fewer than two different expressions; people that the model was trained on. Of more people or
    images than the protocol allows, some are chosen, evenly spread over their names. Files are read and aligned as the
    pipeline reads references.

    Args:
        root: the folder, in a layout of `data.sources.layouts`.
        protocol: the largest numbers of people, images of a person, and people with dials.
        pipeline: the model.
        run_dir: the folder of its training.

    Raises:
        DataError: the folder cannot be used (see `data.sources.folder.open_folder`), or fewer than two people are left.
        ConfigError: the model has no vector or prompt for an expression of the dials.
    """
    _refuse_unknown_dials(protocol, pipeline)
    size = pipeline.config.model.image_size
    source = open_folder(root, size, 1.0, records=None, least_expressions=0)
    seen = trained_people(source, pipeline.config, run_dir)
    people_left_out: dict[str, str] = {}
    files_left_out = {row.file: row.reason for row in source.rejected}
    refused = {
        label: reason
        for label in {example.label for example in source.examples}
        if (reason := _refusal(label, pipeline)) is not None
    }
    places: dict[str, list[int]] = {}
    for place in sorted(range(len(source.files)), key=source.files.__getitem__):
        places.setdefault(source.examples[place].identity, []).append(place)
    candidates: list[FolderPerson] = []
    for name, own in sorted(places.items()):
        if name in seen:
            people_left_out[name] = _TRAINED
            continue
        reference = next((p for p in own if _is_neutral(source, p)), own[0])
        others = [p for p in own if p != reference]
        for p in others:
            if (label := source.examples[p].label) in refused:
                files_left_out[source.files[p]] = refused[label]
        asked = [p for p in others if source.examples[p].label not in refused]
        different = len({source.examples[p].expression_key for p in (reference, *asked)})
        if different < 2:
            people_left_out[name] = f"fewer than 2 different expressions ({different})"
            continue
        candidates.append(_person(source, name, reference, _spread(asked, protocol.expressions)[0], pipeline, size))
    chosen = _choose(candidates, protocol.people, pipeline.photos, people_left_out, files_left_out)
    if len(chosen) < 2:
        raise DataError(
            f"{len(chosen)} of {len(places)} people can be evaluated, must be at least 2; left out: "
            f"{named(people_left_out | files_left_out)}",
            field="data",
            found=f"{SOURCE}:{root}",
        )
    return FolderPeople(source, protocol, chosen, people_left_out | files_left_out, pipeline.photos)


def align_for(root: Path, given: Align | None) -> Align | None:
    """The `align` of a pipeline that reads a folder: what is given, else `none` for one that `prepare photos` wrote."""
    return "none" if given is None and (root / ALIGNED).is_file() else given


def _choose(
    candidates: Sequence[FolderPerson],
    most: int,
    photos: PhotoReader,
    people_left_out: dict[str, str],
    files_left_out: dict[str, str],
) -> list[FolderPerson]:
    """At most `most` people, with the images that can be read; what was tried and cannot be used is left out."""
    chosen: list[FolderPerson] = []
    first, rest = _spread(candidates, most)
    for person in (*first, *rest):
        if len(chosen) == most:
            break
        # Every file has been decoded; only a detector can still refuse one.
        faults = {} if photos.align == "none" else person.faults()
        files_left_out |= faults
        if person.reference_file in faults or not set(person.files) - faults.keys():
            people_left_out[person.name] = "no reference or no other image that can be aligned"
            continue
        chosen.append(person.without(faults))
    return sorted(chosen, key=lambda person: person.name)


def _spread(items: Sequence[Any], most: int) -> tuple[list[Any], list[Any]]:
    """At most `most` items, evenly spread, and the others, both in their order."""
    count = min(most, len(items))
    places = {i * len(items) // count for i in range(count)}
    return [x for i, x in enumerate(items) if i in places], [x for i, x in enumerate(items) if i not in places]


def _person(
    source: FolderSource, name: str, reference: int, asked: Iterable[int], pipeline: Pipeline, size: int
) -> FolderPerson:
    asked, words = list(asked), word_names()
    labels = tuple(source.examples[p].label for p in asked)
    return FolderPerson(
        name=name,
        labels=labels,
        words=np.array([words.index(label) if label in words else NO_WORD for label in labels]),
        vectors=np.stack([source.examples[p].expression for p in asked]),
        attributes={},
        root=source.root,
        reference_file=source.files[reference],
        neutral_reference=_is_neutral(source, reference),
        files=tuple(source.files[p] for p in asked),
        image_size=size,
        read=pipeline.photos,
    )


def _is_neutral(source: FolderSource, place: int) -> bool:
    return bool((source.examples[place].expression == neutral()).all())


def _refusal(label: str, pipeline: Pipeline) -> str | None:
    """Why the model cannot be asked for a label; None if it can."""
    try:
        expressions = pipeline.parse(label)
        if pipeline.prompts is not None:
            pipeline.prompts.rows([prompt_for(e, pipeline.config.text) for e in expressions])
    except (ExpressionError, DataError) as e:
        return str(e)
    return None


def _refuse_unknown_dials(protocol: Protocol, pipeline: Pipeline) -> None:
    if protocol.dial_people:
        for expression in protocol.dials:
            if (reason := _refusal(expression, pipeline)) is not None:
                raise ConfigError(
                    f"{reason}; other words, or dial_people 0, do without",
                    field="dial_words",
                    found=" ".join(protocol.dial_words),
                )
