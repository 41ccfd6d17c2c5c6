"""Figures of seeds, of models whose right figures are known; and their part of an evaluation's folder."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from genaffect_jax import evaluate as command
from genaffect_jax.config import DataConfig, SamplingConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.evaluation.catalogue import ABOUT, MEASURED_WITH
from genaffect_jax.evaluation.diversity import Diversity
from genaffect_jax.evaluation.procedural_people import ProceduralPeople, true_images
from genaffect_jax.evaluation.protocol import FIRST_PERSON, Protocol, word_names, word_vectors
from genaffect_jax.evaluation.readings import Evaluators
from genaffect_jax.evaluation.report import as_markdown, as_table, write_report
from genaffect_jax.evaluation.run import EvaluationRun, run_evaluation
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder

SIDE = 64
VECTORS = dict(zip(word_names(), word_vectors(), strict=True))
# Few images: an encoder pads what it is given to 8 or to 64.
PROTOCOL = Protocol(people=3, expressions=3, dial_people=0)
FIGURES = [name for name, setting in MEASURED_WITH.items() if setting == "diversity"]


class Model:
    """Stands for a pipeline that renders `image_of(person, vector, seed)`, and counts."""

    name = "model, step 1, identity 0123456789ab"
    config = SimpleNamespace(data=DataConfig(identities=10))

    def __init__(self, image_of=lambda person, vector, seed: (person, vector), stop_at=None):
        self.image_of, self.stop_at, self.calls = image_of, stop_at, []

    def __call__(self, identity, expressions, settings):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        person, words = int(identity.removeprefix("seed:")) - FIRST_PERSON, expressions.split(", ")
        self.calls.append((person, settings.seed, len(words)))
        shown = [self.image_of(person, VECTORS[word], settings.seed) for word in words]
        return SimpleNamespace(images=np.concatenate([true_images(who, v[None], SIDE) for who, v in shown]))


@pytest.fixture(scope="module")
def evaluators():
    return Evaluators(
        load_identity_encoder("package:identity_evaluator"), load_expression_encoder("package:expression_evaluator")
    )


@pytest.fixture
def run_of(evaluators):
    def run(model, diversity=Diversity(people=2, seeds=3), **changes):  # noqa: B008 (frozen)
        protocol = dataclasses.replace(PROTOCOL, **changes)
        return EvaluationRun(model, ProceduralPeople(protocol), SamplingConfig(seed=5), evaluators, diversity=diversity)

    return run


def test_a_model_that_ignores_its_noise_has_the_ceiling(run_of, tmp_path):
    model = Model()
    figures = run_evaluation(run_of(model), tmp_path).figures
    assert model.calls == [
        *((0, 5, 3), (0, 5, 3), (0, 6, 3), (0, 7, 3)),  # the set, then the words under each seed
        *((1, 5, 3), (1, 5, 3), (1, 6, 3), (1, 7, 3)),
        (2, 5, 3),
    ]
    found = {name: (figures[name].value.value, figures[name].ceiling) for name in FIGURES}
    assert found["seed_identity"] == (pytest.approx(1, abs=1e-6), 1)
    assert found["seed_expression"] == (0, 0)
    assert found["seed_pixels"] == (0, 0)
    assert all(len(figures[name].by_person) == 2 for name in FIGURES)
    assert figures["seed_identity"].floor < 0.5
    assert figures["seed_expression"].floor > 5


def test_another_person_under_every_seed_falls_to_the_floor_of_the_person_alone(run_of, tmp_path):
    model = Model(lambda person, vector, seed: (person + 100 * (seed - 5), vector))
    figures = run_evaluation(run_of(model), tmp_path).figures
    assert figures["seed_identity"].value.value == pytest.approx(figures["seed_identity"].floor, abs=0.25)
    assert figures["seed_identity"].value.value < 0.5
    assert figures["seed_expression"].value.value < figures["seed_expression"].floor / 2
    assert figures["seed_pixels"].value.value > 10


def test_another_expression_under_every_seed_falls_to_the_floor_of_the_expression_alone(run_of, tmp_path):
    def another_word(person, vector, seed):  # each seed shows the person's words in another order
        own = word_vectors(PROTOCOL.words(person))
        return person, own[(int(np.abs(own - vector).sum(1).argmin()) + seed - 5) % len(own)]

    figures = run_evaluation(run_of(Model(another_word)), tmp_path).figures
    assert figures["seed_expression"].value.value == pytest.approx(figures["seed_expression"].floor, rel=1e-3)
    assert figures["seed_identity"].value.value > 0.8


def test_the_figures_of_single_sets_do_not_depend_on_seeds_being_measured(run_of, tmp_path):
    with_seeds = run_evaluation(run_of(Model()), tmp_path / "with").figures
    without = run_evaluation(run_of(Model(), diversity=None), tmp_path / "without").figures
    assert set(without) == {name for name in with_seeds if name not in FIGURES}
    assert all(without[name].by_person == with_seeds[name].by_person for name in without)


def test_a_stopped_evaluation_is_continued_with_its_seeds(run_of, tmp_path):
    whole = run_evaluation(run_of(Model()), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # between the seeds of the second person
        run_evaluation(run_of(Model(stop_at=6)), tmp_path / "stopped")
    rest = Model()
    assert run_evaluation(run_of(rest), tmp_path / "stopped") == whole
    assert [person for person, _, _ in rest.calls] == [1, 1, 1, 1, 2]
    with pytest.raises(ConfigError, match="holds an evaluation with another diversity"):
        run_evaluation(run_of(Model(), diversity=Diversity(people=2, seeds=4)), tmp_path / "stopped")


def test_the_report_says_how_many_people_and_that_pixels_have_no_better_side(run_of, tmp_path):
    run = run_of(Model(), diversity=Diversity(people=8, seeds=2))
    found = run_evaluation(run, tmp_path)
    assert len(found.figures["seed_pixels"].by_person) == 3  # all that there are
    page = as_markdown(found, run.settings)
    assert "Figures of seeds are of 3 people, each with the same words under 2 seeds." in page
    (line,) = (line for line in page.splitlines() if line.startswith("| seed_pixels | change"))
    assert "(no aim)" in line
    assert as_table(found).row_count == len(ABOUT)
    write_report(found, run.settings, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["settings"]["diversity"] == {"people": 8, "seeds": 2}
    assert written["figures"]["seed_pixels"]["better"] == "neither"
    assert written["figures"]["clip_score"]["value"] is None


def test_a_persons_words_are_spread_over_the_list():
    assert Diversity.places(24).tolist() == [0, 6, 12, 18]
    assert Diversity.places(3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": -1}, "diversity_people=-1: must be at least 1"),
        ({"seeds": 1}, "diversity_seeds=1: must be at least 2"),
    ],
)
def test_numbers_that_measure_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Diversity(**changes)


def test_the_command_refuses_one_seed_before_it_loads_the_model(tmp_path, capsys):
    argv = ["--model", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--diversity_seeds", "1"]
    assert command.main(argv) == 2
    assert "--diversity_seeds 1: must be at least 2, or 0 to leave it out" in capsys.readouterr().err
    assert command.main([*argv[:-1], "0"]) == 2
    assert "--model" in capsys.readouterr().err  # none is no error
