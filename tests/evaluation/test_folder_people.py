"""Who of an image folder is evaluated, what the model and the evaluators get, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.evaluated_folders import SIDE, Model, opened, render

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DataConfig
from genaffect_jax.data.groups import split_identities
from genaffect_jax.data.photos.reader import PhotoReader
from genaffect_jax.data.sources.folder import open_folder
from genaffect_jax.errors import ConfigError, DataError
from genaffect_jax.evaluation.folder_people import align_for
from genaffect_jax.evaluation.people import request
from genaffect_jax.evaluation.procedural_people import true_images
from genaffect_jax.evaluation.protocol import Protocol
from genaffect_jax.evaluation.trained_people import trained_people
from genaffect_jax.expressions.action_units import neutral
from genaffect_jax.expressions.grammar import parse_expression, parse_expressions


def test_the_reference_is_the_neutral_image_else_the_first_by_name(tmp_path):
    render(tmp_path / "r", 0, "anger", "joy", "neutral", "neutral_2")
    render(tmp_path / "r", 1, "joy", "anger", "AU6=0.5,AU12=0.9")
    people = opened(tmp_path / "r")
    assert people.settings["references"] == {"p0": "p0/neutral.png", "p1": "p1/AU6=0.5,AU12=0.9.png"}
    assert people[0].labels == ("anger", "joy", "neutral")
    assert people[1].labels == ("anger", "joy")
    np.testing.assert_array_equal(people[0].identity, true_images(0, neutral()[None], SIDE)[0])
    assert "the neutral image of 1 people, and the first image by name of the others" in people.describe()


@pytest.mark.parametrize("labels", [("joy", "anger"), ("AU1=1", "AU2=0.5", "joy"), ("AU6=0.5,AU12=0.9", "AU1=1")])
def test_labels_are_asked_for_as_they_are(labels):
    assert [e.name for e in parse_expressions(request(labels))] == list(labels)


def test_people_and_files_that_cannot_be_evaluated_are_named_with_their_reasons(tmp_path):
    for person in range(3):
        render(tmp_path / "r", person, "neutral", "joy", "anger")
    render(tmp_path / "r", 3, "joy", "joy_2")
    render(tmp_path / "r", 4, "neutral", "AU1=1")
    (tmp_path / "r" / "p0" / "fear.png").write_bytes(b"torn")
    people = opened(tmp_path / "r", Model(refuses=("AU1=1",)))
    assert [person.name for person in people] == ["p0", "p1", "p2"]
    left_out = people.settings["left_out"]
    assert left_out.keys() == {"p3", "p4", "p4/AU1=1.png", "p0/fear.png"}
    assert left_out["p3"] == left_out["p4"] == "fewer than 2 different expressions (1)"
    assert "not known to this model" in left_out["p4/AU1=1.png"]
    assert "not an image" in left_out["p0/fear.png"]
    assert "fewer than 2 different expressions (1) (p3, p4)" in people.describe()


def test_more_people_and_images_than_asked_for_are_thinned_out_evenly(tmp_path):
    for person in range(4):
        render(tmp_path / "r", person, "neutral", *(f"joy_{i}" for i in range(4)))
    people = opened(tmp_path / "r", protocol=Protocol(people=2, expressions=2, dial_people=2))
    assert [person.name for person in people] == ["p0", "p2"]
    assert people[0].files == ("p0/joy_0.png", "p0/joy_2.png")
    assert "2 of 4 people" in people.describe()
    fewer = opened(tmp_path / "r", protocol=Protocol(people=64, expressions=24, dial_people=8))
    assert (fewer.protocol.people, fewer.protocol.dial_people) == (4, 4)


def test_fewer_than_two_people_are_refused_with_the_reasons(tmp_path):
    render(tmp_path / "r", 0, "neutral", "joy")
    render(tmp_path / "r", 1, "joy")
    with pytest.raises(
        DataError, match=r"data=folder:.*: 1 of 2 people .* at least 2; left out: fewer than 2 .*\(p1\)"
    ):
        opened(tmp_path / "r")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images found"):
        opened(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"dial_words=joy: .*not known to this model"):
        opened(tmp_path / "r", Model(refuses=("joy:0.5",)), Protocol(dial_words=("joy",)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "r"]


@pytest.fixture
def trained_on(tmp_path):
    """A folder of eight people, a model that was trained on some of them, and their names."""
    root = tmp_path / "r"
    for person in range(8):
        render(root, person, "neutral", "joy")
    source = open_folder(root, SIDE, 0.0, RunDir(tmp_path / "run"))
    holdout = 0.65
    trained, held_out = split_identities(source, holdout, 0)
    assert min(len(trained), len(held_out)) >= 2
    return root, Model(data=DataConfig(source="folder", root=root, holdout=holdout)), trained, held_out


@pytest.mark.parametrize("moved", [False, True])
def test_people_that_the_model_was_trained_on_are_left_out_but_not_those_it_held_out(trained_on, tmp_path, moved):
    root, model, trained, held_out = trained_on
    if moved:
        root = root.rename(tmp_path / "moved")
    for person in (8, 9):
        render(root, person, "neutral", "joy")
    people = opened(root, model, Protocol())
    assert people.settings["left_out"] == dict.fromkeys(trained, "the model was trained on them")
    assert [person.name for person in people] == sorted([*held_out, "p8", "p9"])


def test_a_model_that_was_trained_on_everybody_is_refused(trained_on):
    root, model, *_ = trained_on
    model.config.data = dataclasses.replace(model.config.data, holdout=0.0)
    with pytest.raises(DataError, match=r"0 of 8 people .*trained on them \(p0, p1, p2, p3, p4 and 3 more\)"):
        opened(root, model)


def test_other_files_of_the_same_names_and_another_training_are_no_reason(trained_on, tmp_path):
    _, model, *_ = trained_on
    for person in range(8):
        render(tmp_path / "other", person, "neutral", "joy")
        for file in (tmp_path / "other" / f"p{person}").iterdir():
            file.write_bytes(file.read_bytes() + b"longer")
    source = open_folder(tmp_path / "other", SIDE, 0.0, None)
    assert trained_people(source, model.config, RunDir(tmp_path / "run")) == frozenset()
    assert trained_people(source, Model().config, RunDir(tmp_path / "run")) == frozenset()


def test_references_and_truth_are_read_as_the_pipeline_reads_them(tmp_path):
    class Aligner(PhotoReader):
        """Stands for a detector: turns faces upside down, and finds none in some."""

        def __init__(self):
            super().__init__("none")
            self.align, self.models = "face", "pack"

        def __call__(self, path, image_size):
            if path.parts[-2:] in (("p0", "neutral.png"), ("p1", "anger.png")):
                raise DataError("no face found")
            return super().__call__(path, image_size)[::-1]

    for person in range(3):
        render(tmp_path / "r", person, "neutral", "joy", "anger")
    people = opened(tmp_path / "r", Model(photos=Aligner()))
    assert [person.name for person in people] == ["p1", "p2"]
    no_face = dict.fromkeys(("p0/neutral.png", "p1/anger.png"), "no face found")
    assert people.settings["left_out"] == {"p0": "no reference or no other image that can be aligned"} | no_face
    assert (people[0].files, people[1].files) == (("p1/joy.png",), ("p2/anger.png", "p2/joy.png"))
    assert people[0].labels == ("joy",)
    assert (people.settings["align"], people.settings["face_models"]) == ("face", "pack")
    for image, vector in (
        (people[0].identity, neutral()),
        (people[0].true_images(SIDE)[0], parse_expression("joy").vector),
    ):
        np.testing.assert_array_equal(image, true_images(1, vector[None], SIDE)[0, ::-1])
    # Of more people than asked for, another takes the place of one who cannot be aligned.
    two = opened(tmp_path / "r", Model(photos=Aligner()), Protocol(people=2, dial_people=0))
    assert [person.name for person in two] == ["p1", "p2"]


def test_a_folder_that_was_aligned_is_not_aligned_again_unless_asked_for(tmp_path):
    assert align_for(tmp_path, None) is None
    (tmp_path / "aligned.jsonl").write_text("")
    assert (align_for(tmp_path, None), align_for(tmp_path, "face")) == ("none", "face")
