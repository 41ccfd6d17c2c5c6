"""People of an image folder: models whose right figures are known, who is evaluated, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from genaffect_jax.checkpoints.components import FaceEncoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import AuxiliaryConfig, DataConfig, SamplingConfig
from genaffect_jax.data.groups import split_identities
from genaffect_jax.data.photos.reader import PhotoReader
from genaffect_jax.data.sources.folder import open_folder
from genaffect_jax.errors import ConfigError, DataError, ExpressionError
from genaffect_jax.evaluation.catalogue import ABOUT, READ_IN_TRUTH
from genaffect_jax.evaluation.figures import evaluate
from genaffect_jax.evaluation.folder_people import open_folder_people
from genaffect_jax.evaluation.people import NO_WORD
from genaffect_jax.evaluation.procedural_people import ProceduralPeople, true_images
from genaffect_jax.evaluation.protocol import INTENSITIES, Protocol, word_names
from genaffect_jax.evaluation.readings import Evaluators, read_person
from genaffect_jax.evaluation.report import as_json, as_markdown
from genaffect_jax.evaluation.run import EvaluationRun, load_evaluators, run_evaluation
from genaffect_jax.evaluation.trained_people import trained_people
from genaffect_jax.expressions.action_units import WIDTH, neutral
from genaffect_jax.expressions.grammar import parse_expression, parse_expressions
from genaffect_jax.io.image_grid import write_png
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder

SIDE = 64
PROTOCOL = Protocol(people=4, expressions=3, dial_people=0, dial_words=("joy",))
NOTHING = np.zeros((0, SIDE, SIDE, 3), np.uint8)
NOT_FOR_PHOTOS = {"sharpness", "background_variation"}


@pytest.fixture(scope="module")
def evaluators():
    return Evaluators(
        load_identity_encoder("package:identity_evaluator"), load_expression_encoder("package:expression_evaluator")
    )


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
        images = model(person.identity, person.expressions, SamplingConfig()).images
        dials = NOTHING
        if place < people.protocol.dial_people:
            dials = model(person.identity, ", ".join(people.protocol.dials), SamplingConfig()).images
        return read_person(place, people, evaluators, images, person.true_images(SIDE), dials)

    return evaluate([read(place) for place in range(len(people))], people)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The people and words of the protocol in its order, as a folder with a table."""
    root = tmp_path_factory.mktemp("rendered") / "images"
    rows = []
    for person in range(PROTOCOL.people):
        names = [word_names()[i] for i in PROTOCOL.words(person)]
        for place, label in enumerate([*names, "neutral"]):
            file = f"{person}{place}.png"
            write_png(true_images(person, parse_expression(label).vector[None], SIDE)[0], root / file)
            rows.append((file, f"p{person}", label))
    with (root / "metadata.csv").open("w", newline="") as table:
        csv.writer(table).writerows([("file", "identity", "expression"), *rows])
    return root


# The figures


@pytest.mark.parametrize(
    "answer", [None, lambda person, vectors: true_images(person + 4, np.roll(vectors, 1, axis=0), SIDE)]
)
def test_a_folder_of_rendered_people_has_the_figures_of_the_rendered_people(answer, root, evaluators):
    model = Model(answer)
    found = figures_of(opened(root), model, evaluators)
    procedural = ProceduralPeople(PROTOCOL)
    readings = []
    for place in range(PROTOCOL.people):
        images = model.answer(place, procedural[place].vectors)
        truth = procedural[place].true_images(SIDE)
        readings.append(read_person(place, procedural, evaluators, images, truth, NOTHING))
    rendered = evaluate(readings, procedural)
    assert found.figures == {name: rendered.figures[name] for name in rendered.figures if name not in NOT_FOR_PHOTOS}
    assert found.confusions == rendered.confusions
    assert found.worst_groups == {}


def test_true_images_reach_the_ceiling_and_what_needs_a_renderer_is_not_measured(root, evaluators):
    people = opened(root)
    found = figures_of(people, Model(), evaluators)
    assert set(ABOUT) - set(found.figures) == NOT_FOR_PHOTOS | {name for name in ABOUT if name.startswith("dial_")}
    for name, figure in found.figures.items():
        assert figure.value.value == pytest.approx(figure.ceiling, abs=1e-6), name
    settings = {"model": "m", "people": people.describe(), "evaluators": evaluators.names()}
    report = as_json(found, settings)
    assert all(report["figures"][name]["value"] is None for name in NOT_FOR_PHOTOS)
    page = as_markdown(found, settings)
    assert "4 of 4 people in the folder" in page
    assert "12 held-out images (3 of each person)" in page
    assert "The reference is each person's neutral image." in page
    assert "[p2](people/0002.png)" in page
    assert "None: nothing divides these people into groups" in page


def test_copies_of_the_reference_score_1_and_gain_nothing(root, evaluators):
    copies = Model(lambda person, vectors: true_images(person, np.stack([neutral()] * len(vectors)), SIDE))
    found = figures_of(opened(root), copies, evaluators)
    assert found.figures["copy_score"].value.value == pytest.approx(1, abs=1e-5)
    assert found.figures["expression_gain"].value.value == pytest.approx(0, abs=1e-6)


def test_people_with_different_numbers_of_images_count_alike(tmp_path, evaluators):
    render(tmp_path / "r", 0, "neutral", "joy")
    render(tmp_path / "r", 1, "neutral", "joy", "anger", "AU1=1")
    render(tmp_path / "r", 2, "neutral", "joy", "anger", "AU1=1")
    model = Model(lambda person, vectors: true_images(person, 0.5 * vectors, SIDE))
    found = figures_of(opened(tmp_path / "r"), model, evaluators)
    both = tmp_path / "both"
    both.mkdir()
    for name in ("p1", "p2"):
        (tmp_path / "r" / name).rename(both / name)
    alone = figures_of(opened(both), model, evaluators)
    for name, figure in found.figures.items():
        if figure.by_person:
            assert figure.by_person[1:] == alone.figures[name].by_person, name
            known = [value for value in figure.by_person if np.isfinite(value)]
            assert figure.value.value == pytest.approx(np.mean(known)), name
    # The only true image of the first person stands for the next one; without a second there is no ceiling, no set.
    first = evaluators.identity(
        np.concatenate([true_images(0, v * parse_expression("joy").vector[None], SIDE) for v in (0.5, 1.0)])
    )
    assert found.figures["identity"].by_person[0] == pytest.approx(float(first[0] @ first[1]), abs=1e-5)
    assert found.figures["identity"].ceiling == alone.figures["identity"].ceiling
    assert "of a person with one true image, that one" in found.about("identity").formula
    assert alone.about("identity") == ABOUT["identity"]
    assert np.isnan(found.figures["set_consistency"].by_person[0])
    assert found.figures["set_consistency"].ceiling == alone.figures["set_consistency"].ceiling


def test_without_words_among_the_labels_words_are_not_measured(tmp_path, evaluators):
    for person in (0, 1):
        render(tmp_path / "r", person, "neutral", "AU12=0.9", "joy:0.5")
    people = opened(tmp_path / "r")
    assert (people[0].words == NO_WORD).all()
    found = figures_of(people, Model(), evaluators)
    assert "word_top1" not in found.figures
    assert found.confusions == ()
    assert found.figures["expression_error"].value.value < 10


@pytest.mark.parametrize("starts_at", [0.0, 1.0])
def test_dials_are_read_along_the_word_and_a_planted_dead_zone_is_found(tmp_path, starts_at):
    for person in (0, 1):
        render(tmp_path / "r", person, "neutral", "joy", "anger")
    shown = np.maximum(np.array(INTENSITIES) - starts_at, 0)

    def answer(person, vectors):
        if len(vectors) != len(INTENSITIES):
            return true_images(person, vectors, SIDE)
        return np.stack([np.full((SIDE, SIDE, 3), round(100 * level), np.uint8) for level in shown])

    protocol = Protocol(people=2, expressions=2, dial_people=1, dial_words=("joy",))
    people = opened(tmp_path / "r", protocol=protocol)
    found = figures_of(people, Model(answer), Evaluators(Directions(), GreyReader()))
    assert found.dials["joy"].generated == pytest.approx(shown.tolist(), abs=1e-6)
    assert found.dials["joy"].true == ()
    assert found.figures["dial_monotone"].value.value == pytest.approx((np.diff(shown) > 0).mean())
    assert found.figures["dial_dead_zone"].value.value == pytest.approx(starts_at / 1.5)
    correlation = np.corrcoef(shown, INTENSITIES)[0, 1]
    assert found.figures["dial_correlation"].value.value == pytest.approx(correlation, abs=1e-6)
    assert np.isnan(found.figures["dial_correlation"].ceiling)
    assert "along the action units of the word" in found.about("dial_correlation").formula
    page = as_markdown(found, {"model": "m", "people": "", "evaluators": QUICK.names()})
    assert "| generated | 0.00 |" in page
    assert "| true |" not in page


def test_vectors_that_are_no_action_units_are_compared_with_those_of_the_true_images(root):
    perfect = figures_of(opened(root), Model(), QUICK)
    assert perfect.figures["expression_error"].value.value == perfect.figures["expression_error"].ceiling == 0
    assert perfect.figures["expression_gain"].value.value == 1
    assert "word_top1" not in perfect.figures
    assert perfect.about("expression_error") == READ_IN_TRUTH["expression_error"] != ABOUT["expression_error"]
    report = as_json(perfect, {})
    assert "what the evaluator reads in the true image" in report["figures"]["expression_error"]["formula"]
    assert "what the evaluator reads in the true image" in report["figures"]["expression_gain"]["formula"]
    darker = Model(lambda person, vectors: true_images(person, vectors, SIDE) // 2)
    found = figures_of(opened(root), darker, QUICK)
    true = true_images(0, opened(root)[0].vectors, SIDE)
    wanted = 100 * np.abs(Colours()(true // 2) - Colours()(true)).mean()
    assert found.figures["expression_error"].by_person[0] == pytest.approx(wanted, rel=1e-5)
    dials = Protocol(people=2, expressions=2, dial_people=1, dial_words=("joy",))
    found = figures_of(opened(root, protocol=dials), Model(), QUICK)
    assert {name for name in found.figures if name.startswith("dial_")} == {"dial_identity_loss"}
    assert len(found.dials["joy"].cosine_to_reference) == len(INTENSITIES)


def test_encoders_without_action_units_judge_folders_only(tmp_path):
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    nodes = [make.make_node("GlobalAveragePool", ["image"], ["mean"]), make.make_node("Flatten", ["mean"], ["vector"])]
    image = make.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 3, 16, 16])
    vector = make.make_tensor_value_info("vector", onnx.TensorProto.FLOAT, ["n", 3])
    graph = make.make_graph(nodes, "net", [image], [vector])
    onnx.save_model(
        make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=10), tmp_path / "net.onnx"
    )
    settings = {"onnx": "net.onnx", "name": "means", "licence": "none", "image_size": 16, "output": "vector"}
    (tmp_path / "encoder.json").write_text(json.dumps(settings))
    source = str(tmp_path / "encoder.json")
    found = load_evaluators(Model(), "package:identity_evaluator", source, any_vectors=True)
    assert found.expression.width == 3
    with pytest.raises(ConfigError, match=r"expression_evaluator=.*reads 3 numbers, must read the 40 action-unit"):
        load_evaluators(Model(), "package:identity_evaluator", source)
    own = Model()
    own.faces = FaceEncoders(None, found.expression)
    with pytest.raises(ConfigError, match=r"expression_evaluator=.*is conditioned on"):
        load_evaluators(own, "package:identity_evaluator", source, any_vectors=True)


# Who is evaluated


def test_the_reference_is_the_neutral_image_else_the_first_by_name(tmp_path):
    render(tmp_path / "r", 0, "anger", "joy", "neutral", "neutral_2")
    render(tmp_path / "r", 1, "joy", "anger", "AU6=0.5,AU12=0.9")
    people = opened(tmp_path / "r")
    assert people.settings["references"] == {"p0": "p0/neutral.png", "p1": "p1/AU6=0.5,AU12=0.9.png"}
    assert people[0].labels == ("anger", "joy", "neutral")
    assert people[1].expressions == "anger; joy"
    np.testing.assert_array_equal(people[0].identity, true_images(0, neutral()[None], SIDE)[0])
    assert "the neutral image of 1 people, and the first image by name of the others" in people.describe()


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
        """Stands for a detector: turns faces upside down, and finds none in `p0/anger.png`."""

        def __init__(self):
            super().__init__("none")
            self.align, self.models = "face", "pack"

        def __call__(self, path, image_size):
            if path.parts[-2:] == ("p0", "anger.png"):
                raise DataError("no face found")
            return super().__call__(path, image_size)[::-1]

    for person in range(3):
        render(tmp_path / "r", person, "neutral", "joy", "anger")
    people = opened(tmp_path / "r", Model(photos=Aligner()))
    assert [person.name for person in people] == ["p1", "p2"]
    assert people.settings["left_out"] == {"p0": "p0/anger.png: no face found"}
    assert (people.settings["align"], people.settings["face_models"]) == ("face", "pack")
    for image, vector in (
        (people[0].identity, neutral()),
        (people[0].true_images(SIDE)[1], parse_expression("joy").vector),
    ):
        np.testing.assert_array_equal(image, true_images(1, vector[None], SIDE)[0, ::-1])
    # Of more people than asked for, another takes the place of one who cannot be aligned.
    two = opened(tmp_path / "r", Model(photos=Aligner()), Protocol(people=2, dial_people=0))
    assert [person.name for person in two] == ["p1", "p2"]


# The run


def test_a_stopped_evaluation_is_continued_and_a_changed_folder_is_refused(tmp_path):
    for person in range(3):
        render(tmp_path / "r", person, "neutral", "joy", "anger")

    def run(model):
        return EvaluationRun(model, opened(tmp_path / "r"), SamplingConfig(), QUICK)

    def stops(person, vectors):
        if person == 1:
            raise KeyboardInterrupt
        return true_images(person, vectors, SIDE)

    whole = run_evaluation(run(Model()), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(run(Model(stops)), tmp_path / "out")
    rest = Model()
    assert as_json(run_evaluation(run(rest), tmp_path / "out"), {}) == as_json(whole, {})
    assert rest.calls == [1, 2]
    settings = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert settings["data"]["fingerprint"] == open_folder(tmp_path / "r", SIDE, 0.0, None).fingerprint()
    render(tmp_path / "r", 0, "fear")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(ConfigError, match="holds an evaluation with another data"):
        run_evaluation(run(Model()), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_an_image_that_is_gone_ends_the_run_with_its_name(tmp_path):
    for person in range(2):
        render(tmp_path / "r", person, "neutral", "joy", "anger")
    people = opened(tmp_path / "r")
    (tmp_path / "r" / "p1" / "joy.png").unlink()
    with pytest.raises(DataError, match=r"p1/joy\.png: was readable when the folder was checked"):
        run_evaluation(EvaluationRun(Model(), people, SamplingConfig(), QUICK), tmp_path / "out")
