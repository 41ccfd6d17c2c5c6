"""The evaluation of people in an image folder, with models whose right figures are known."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from support.evaluated_folders import (
    NOTHING,
    PROTOCOL,
    QUICK,
    SIDE,
    Colours,
    Directions,
    GreyReader,
    Model,
    figures_of,
    opened,
    render,
)

from genaffect_jax.checkpoints.components import FaceEncoders
from genaffect_jax.config import SamplingConfig
from genaffect_jax.data.sources.folder import open_folder
from genaffect_jax.errors import ConfigError, DataError
from genaffect_jax.evaluation.catalogue import ABOUT, MEASURED_WITH, READ_IN_TRUTH
from genaffect_jax.evaluation.diversity import Diversity
from genaffect_jax.evaluation.figures import evaluate
from genaffect_jax.evaluation.people import NO_WORD
from genaffect_jax.evaluation.procedural_people import ProceduralPeople, true_images
from genaffect_jax.evaluation.protocol import INTENSITIES, Protocol, word_names
from genaffect_jax.evaluation.readings import Evaluators, read_person
from genaffect_jax.evaluation.report import as_json, as_markdown
from genaffect_jax.evaluation.run import EvaluationRun, load_evaluators, run_evaluation
from genaffect_jax.evaluation.similarity import SimilarityEncoders
from genaffect_jax.expressions.action_units import neutral
from genaffect_jax.expressions.grammar import parse_expression
from genaffect_jax.io.image_grid import write_png
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder

NOT_FOR_PHOTOS = {"sharpness", "background_variation"}


@pytest.fixture(scope="module")
def evaluators():
    return Evaluators(
        load_identity_encoder("package:identity_evaluator"), load_expression_encoder("package:expression_evaluator")
    )


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
    dials = {name for name in ABOUT if name.startswith("dial_")}
    assert set(ABOUT) - set(found.figures) == NOT_FOR_PHOTOS | dials | set(MEASURED_WITH)
    for name, figure in found.figures.items():
        assert figure.value.value == pytest.approx(figure.ceiling, abs=1e-6), name
    settings = {"model": "m", "people": people.describe(), "evaluators": evaluators.names()}
    settings["preprocessing"] = evaluators.preprocessing()
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
    page = as_markdown(
        found, {"model": "m", "people": "", "evaluators": QUICK.names(), "preprocessing": QUICK.preprocessing()}
    )
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


class Words(Directions):
    """Stands for CLIP and DINO: an image's colours, and one direction for every text."""

    description = "words"

    def images(self, images):
        return self(images)

    def texts(self, texts):
        self.asked = list(texts)
        return np.tile(np.array([[0.6, 0.8, 0.0]], np.float32), (len(texts), 1))


def test_clip_dino_and_seeds_take_people_with_different_numbers_of_images_and_labels_that_are_no_words(tmp_path):
    render(tmp_path / "r", 0, "neutral", "joy")
    for person in (1, 2):
        render(tmp_path / "r", person, "neutral", "joy", "anger", "AU1=1")
    similarity = SimilarityEncoders(Words(), Words())
    run = EvaluationRun(
        Model(), opened(tmp_path / "r"), SamplingConfig(), QUICK, similarity, Diversity(people=3, seeds=2)
    )
    found = run_evaluation(run, tmp_path / "out")
    assert similarity.clip.asked == ["a face showing anger", "a face showing joy"]  # not AU1=1
    assert found.figures["clip_score"].value.value == pytest.approx(found.figures["clip_score"].ceiling)
    # Equal texts: shuffled labels score alike, where the next label is a word.
    images = true_images(1, np.stack([parse_expression(word).vector for word in ("anger", "joy")]), SIDE)
    expected = 2.5 * Directions()(images) @ np.array([0.6, 0.8, 0.0])
    assert found.figures["clip_score"].by_person[1] == pytest.approx(expected.mean(), rel=1e-5)
    assert np.isnan(found.figures["dino_consistency"].by_person[0])
    assert found.figures["dino_consistency"].value.value == pytest.approx(found.figures["dino_consistency"].ceiling)
    assert found.figures["seed_identity"].value.value == pytest.approx(1, abs=1e-5)
    assert found.figures["seed_expression"].by_person == (0, 0, 0)
    assert "the evaluator's unit" in found.about("seed_expression").title
    assert "Figures of seeds are of 3 people" in as_markdown(found, run.settings)


def test_without_words_clip_has_no_score(tmp_path):
    for person in (0, 1):
        render(tmp_path / "r", person, "neutral", "AU1=1", "AU12=1")
    run = EvaluationRun(Model(), opened(tmp_path / "r"), SamplingConfig(), QUICK, SimilarityEncoders(clip=Words()))
    assert "clip_score" not in run_evaluation(run, tmp_path / "out").figures
