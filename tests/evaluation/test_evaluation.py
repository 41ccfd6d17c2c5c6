"""The evaluation of models whose right figures are known, and its folder."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from genaffect_jax.checkpoints.components import FaceEncoders
from genaffect_jax.config import AuxiliaryConfig, DataConfig, SamplingConfig
from genaffect_jax.errors import ConfigError, DataError, WeightsError
from genaffect_jax.evaluation.catalogue import ABOUT, MEASURED_WITH
from genaffect_jax.evaluation.figures import evaluate
from genaffect_jax.evaluation.procedural_people import ProceduralPeople, true_images
from genaffect_jax.evaluation.protocol import FIRST_PERSON, INTENSITIES, Protocol, word_names, word_vectors
from genaffect_jax.evaluation.readings import Evaluators, read_person
from genaffect_jax.evaluation.report import as_json, as_markdown, as_table, write_report
from genaffect_jax.evaluation.run import Cost, EvaluationRun, load_evaluators, run_evaluation
from genaffect_jax.expressions.action_units import neutral
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder

SIDE = 64
# Few images: an encoder pads what it is given to 8 or to 64.
PROTOCOL = Protocol(people=4, expressions=3, dial_people=1, dial_words=("joy",))
PEOPLE = ProceduralPeople(PROTOCOL)


@pytest.fixture(scope="module")
def evaluators():
    return Evaluators(
        load_identity_encoder("package:identity_evaluator"), load_expression_encoder("package:expression_evaluator")
    )


def figures_of(evaluators, images_of, dials_of=None):
    """The figures of a model that answers each person with `images_of(person, vectors)`."""
    none = np.zeros((0, SIDE, SIDE, 3), np.uint8)

    def read(person):
        vectors = word_vectors(PROTOCOL.words(person))
        with_dials = person < PROTOCOL.dial_people
        dials = (dials_of or images_of)(person, PROTOCOL.dial_vectors) if with_dials else none
        return read_person(person, PEOPLE, evaluators, images_of(person, vectors), truth(person, vectors), dials)

    return evaluate([read(person) for person in range(PROTOCOL.people)], PEOPLE)


def truth(person, vectors):
    return true_images(person, vectors, SIDE)


@pytest.fixture(scope="module")
def perfect(evaluators):
    return figures_of(evaluators, truth)


def test_true_images_reach_the_ceiling_of_every_figure(perfect):
    assert set(perfect.figures) == set(ABOUT) - set(MEASURED_WITH)
    for name, figure in perfect.figures.items():
        if not np.isnan(figure.ceiling):
            assert figure.value.value == pytest.approx(figure.ceiling, abs=1e-6), name
    assert perfect.figures["copy_score"].value.value == pytest.approx(-1, abs=1e-5)
    assert perfect.figures["sharpness"].value.value == 1
    assert perfect.figures["identity"].value.value > perfect.figures["identity"].floor + 0.5
    assert all(pair.share == true for pair, true in perfect.confusions)
    assert set(perfect.worst_groups) <= {"identity", "expression_error", "expression_gain"}


def test_copies_of_the_reference_score_1_and_gain_nothing(evaluators, perfect):
    found = figures_of(evaluators, lambda person, vectors: truth(person, np.stack([neutral()] * len(vectors))))
    assert found.figures["copy_score"].value.value == pytest.approx(1, abs=1e-5)
    assert found.figures["expression_gain"].value.value == pytest.approx(0, abs=1e-6)
    for name in ("copy_score", "expression_gain", "identity_frechet"):
        assert found.figures[name].value.value == pytest.approx(found.figures[name].floor, abs=1e-5), name
    assert found.figures["dial_dead_zone"].value.value == pytest.approx(1)
    assert np.isnan(found.figures["dial_correlation"].value.value)
    assert found.figures["set_consistency"].value.value == pytest.approx(1, abs=1e-5)  # above the ceiling: no variation
    assert found.figures["set_consistency"].ceiling < 0.999


def test_other_people_fall_to_the_floor_of_identity_and_keep_the_expression(evaluators, perfect):
    found = figures_of(evaluators, lambda person, vectors: truth(person + 100, vectors))
    assert found.figures["identity"].value.value < perfect.figures["identity"].floor + 0.2
    assert found.figures["expression_error"].value.value < 1.5 * perfect.figures["expression_error"].value.value
    assert found.figures["background_variation"].value.value > perfect.figures["background_variation"].value.value


def test_shuffled_expressions_fall_to_the_floor_of_expression_and_keep_the_person(evaluators, perfect):
    found = figures_of(evaluators, lambda person, vectors: truth(person, np.roll(vectors, 1, axis=0)))
    figure = found.figures["expression_error"]
    assert figure.value.value == pytest.approx(perfect.figures["expression_error"].floor, rel=0.3)
    assert figure.value.value > 2 * figure.ceiling
    assert found.figures["word_top1"].value.value < 0.2
    assert found.confusions
    assert np.mean([true for _, true in found.confusions]) < np.mean([pair.share for pair, _ in found.confusions]) / 2
    assert found.figures["identity"].value.value == pytest.approx(perfect.figures["identity"].value.value, abs=0.05)


def test_a_planted_dead_zone_is_found_and_shown(evaluators, perfect):
    def dead_up_to_one(person, vectors):
        images = truth(person, vectors)
        return images[np.where(np.array(INTENSITIES) < 1, 0, np.arange(len(INTENSITIES)))]

    found = figures_of(evaluators, truth, dead_up_to_one)
    assert found.figures["dial_dead_zone"].value.value >= 0.5  # 0.75 of the range of 1.5
    assert found.figures["dial_dead_zone"].value.value > perfect.figures["dial_dead_zone"].value.value + 0.1
    assert found.dials["joy"].generated[3] == pytest.approx(0, abs=1e-6)
    assert found.dials["joy"].true[4] == pytest.approx(1, abs=1e-6)


def test_without_dials_their_figures_are_reported_as_not_measured(evaluators):
    protocol = dataclasses.replace(PROTOCOL, dial_people=0)
    people = ProceduralPeople(protocol)
    none = np.zeros((0, SIDE, SIDE, 3), np.uint8)
    true = [truth(p, word_vectors(protocol.words(p))) for p in range(4)]
    found = evaluate(
        [read_person(p, people, evaluators, images, images, none) for p, images in enumerate(true)], people
    )
    settings = {"model": "m", "people": people.describe(), "evaluators": evaluators.names()}
    settings["preprocessing"] = evaluators.preprocessing()
    assert as_json(found, settings)["figures"]["dial_correlation"]["value"] is None
    lines = as_markdown(found, settings).splitlines()
    (line,) = (line for line in lines if line.startswith("| dial_correlation | evenness"))
    assert "| not measured |" in line
    assert as_table(found).row_count == len(ABOUT)


def test_every_word_is_asked_for_by_some_person():
    assert {int(i) for p in range(64) for i in Protocol().words(p)} == set(range(len(word_names())))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": 1}, "people=1: must be at least 2"),
        ({"expressions": 136}, "expressions=136: must be 2 to 135"),
        ({"dial_people": 65}, "dial_people=65: must be 0 to 64"),
        ({"dial_words": ("joyous",)}, "dial_words=joyous: must be one of the 135 words"),
    ],
)
def test_protocols_that_measure_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Protocol(**changes)


# The folder


class Model:
    """Stands for a pipeline: answers with true images, and counts."""

    def __init__(self, stop_at=None, identities=10, name="model, step 1", identity=None, auxiliary=None):
        self.name, self.calls, self.stop_at = name, [], stop_at
        auxiliary = auxiliary or AuxiliaryConfig()
        self.config = SimpleNamespace(data=DataConfig(identities=identities), auxiliary=auxiliary)
        self.faces = FaceEncoders(identity, None)

    def __call__(self, identity, expressions, settings):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(identity)
        person = int(identity.removeprefix("seed:")) - FIRST_PERSON
        vectors = dict(zip(word_names(), word_vectors(), strict=True))
        return SimpleNamespace(images=truth(person, np.stack([vectors[n] for n in expressions.split(", ")])))


SMALL = Protocol(people=3, expressions=3, dial_people=0)


def run_of(model, evaluators, **changes):
    return EvaluationRun(model, ProceduralPeople(dataclasses.replace(SMALL, **changes)), SamplingConfig(), evaluators)


def test_a_stopped_evaluation_is_continued_and_ends_as_one_that_was_not(evaluators, tmp_path):
    whole = run_evaluation(run_of(Model(), evaluators), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(run_of(Model(stop_at=1), evaluators), tmp_path / "stopped")
    rest = Model()
    assert run_evaluation(run_of(rest, evaluators), tmp_path / "stopped") == whole
    assert rest.calls == [f"seed:{FIRST_PERSON + p}" for p in (1, 2)]
    cost = Cost.read(tmp_path / "stopped")
    assert (cost.people, Cost.read(tmp_path / "whole").people) == (1, 2)  # without the first person of each start
    assert 0 < cost.sampling_seconds < 60
    assert "figures" in cost.describe()
    again = Model()
    run = run_of(again, evaluators)
    found = run_evaluation(run, tmp_path / "stopped")
    assert again.calls == []
    write_report(found, run.settings, tmp_path / "stopped")
    report = json.loads((tmp_path / "stopped" / "report.json").read_text())
    assert report["settings"] == run.settings
    page = (tmp_path / "stopped" / "report.md").read_text()
    assert f"[seed:{FIRST_PERSON + 2}](people/0002.png)" in page
    sheets = sorted(p.name for p in (tmp_path / "stopped" / "people").glob("*.png"))
    assert sheets == ["0000.png", "0001.png", "0002.png"]
    assert report["figures"]["identity"]["value"]["value"] == whole.figures["identity"].value.value


def test_a_folder_of_other_settings_or_other_files_is_left_alone(evaluators, tmp_path):
    run_evaluation(run_of(Model(), evaluators), tmp_path / "out")
    with pytest.raises(ConfigError, match="out: holds an evaluation with another protocol; choose another folder"):
        run_evaluation(run_of(Model(), evaluators, expressions=5), tmp_path / "out")
    with pytest.raises(ConfigError, match="with another model and protocol"):
        run_evaluation(run_of(Model(name="other"), evaluators, expressions=5), tmp_path / "out")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    for path in (tmp_path / "notes", tmp_path / "notes" / "mine.txt"):
        with pytest.raises(ConfigError, match="is or holds files that are no evaluation"):
            run_evaluation(run_of(Model(), evaluators), path)
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_damaged_readings_are_named(evaluators, tmp_path):
    run_evaluation(run_of(Model(), evaluators), tmp_path / "out")
    (tmp_path / "out" / "people" / "0001.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"0001\.npz: not readable as an evaluated person"):
        run_evaluation(run_of(Model(), evaluators), tmp_path / "out")


def test_a_model_that_may_have_seen_the_people_is_refused_before_anything_is_written(evaluators, tmp_path):
    with pytest.raises(ConfigError, match="was trained on 2000000 procedural avatars"):
        run_evaluation(run_of(Model(identities=2_000_000), evaluators), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_judged_by_its_own_encoder_nor_by_one_of_the_wrong_kind(evaluators):
    identity, expression = "package:identity_evaluator", "package:expression_evaluator"
    assert load_evaluators(Model(), identity, expression).names() == evaluators.names()
    with pytest.raises(ConfigError, match=r"identity_evaluator=.*is the encoder that model, step 1 is conditioned on"):
        load_evaluators(Model(identity=evaluators.identity), identity, expression)
    loss = AuxiliaryConfig(expression_weight=0.1, expression_encoder="package:expression_avatar")
    with pytest.raises(ConfigError, match=r"expression_evaluator=.*was trained with in a loss"):
        load_evaluators(Model(auxiliary=loss), identity, "package:expression_avatar")
    with pytest.raises(WeightsError, match="identity"):
        load_evaluators(Model(), expression, expression)
