"""Ablations: every setting is evaluated like the plain one, and only planted differences are beyond noise."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from genaffect_jax.config import DataConfig, SamplingConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.evaluation import ablations
from genaffect_jax.evaluation.ablations import (
    PLAIN,
    ablated_settings,
    ablations_as_table,
    run_ablations,
    sampling_ablations,
)
from genaffect_jax.evaluation.procedural_people import ProceduralPeople, true_images
from genaffect_jax.evaluation.protocol import FIRST_PERSON, Protocol, word_names, word_vectors
from genaffect_jax.evaluation.readings import Evaluators
from genaffect_jax.evaluation.run import EvaluationRun
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder

PEOPLE = ProceduralPeople(Protocol(people=3, expressions=3, dial_people=0))
VECTORS = dict(zip(word_names(), word_vectors(), strict=True))


class Model:
    """Stands for a pipeline that renders; with shared noise it renders somebody else."""

    name = "model, step 1"
    config = SimpleNamespace(data=DataConfig(identities=10))

    def __init__(self):
        self.settings = []

    def __call__(self, identity, expressions, settings):
        self.settings.append(settings)
        person = int(identity.removeprefix("seed:")) - FIRST_PERSON
        person += 1000 * (settings.set_seed_noise == "shared")
        vectors = np.stack([VECTORS[name] for name in expressions.split(", ")])
        return SimpleNamespace(images=true_images(person, vectors, 64))


def test_a_planted_difference_is_marked_and_equal_settings_are_not(tmp_path, monkeypatch):
    kept = ("plain", "consistency-0.5", "shared-noise")
    all_settings = ablated_settings(SamplingConfig())
    monkeypatch.setattr(ablations, "ablated_settings", lambda plain: {name: all_settings[name] for name in kept})
    evaluators = Evaluators(
        load_identity_encoder("package:identity_evaluator"), load_expression_encoder("package:expression_evaluator")
    )
    run = EvaluationRun(Model(), PEOPLE, SamplingConfig(), evaluators)
    found = run_ablations(sampling_ablations(run), tmp_path / "out")
    assert tuple(found) == kept
    assert not any(d.beyond_noise for name in kept[:2] for d in found[name].differences.values())
    assert found["shared-noise"].differences["identity"].beyond_noise
    assert found["shared-noise"].differences["identity"].difference.value < -0.5
    page = (tmp_path / "out" / "ablations.md").read_text()
    plain, consistent, shared = (line for line in page.splitlines() if line.split(" | ")[0][2:] in kept)
    assert "*" not in plain + consistent
    assert "*" in shared
    html = (tmp_path / "out" / "ablations.html").read_text()
    assert [html.count(f'scope="row">{name}</th>') for name in kept] == [2, 2, 2]  # figures, cost
    assert ablations_as_table(found).row_count == 3
    assert (tmp_path / "out" / "shared-noise" / "report.md").read_text().count("## Against the other report") == 1
    # A second start samples nothing.
    again = dataclasses.replace(run, pipeline=Model())
    assert (
        run_ablations(sampling_ablations(again), tmp_path / "out")["shared-noise"].differences
        == found["shared-noise"].differences
    )
    assert again.pipeline.settings == []


@pytest.mark.parametrize("steps", [1, 4, 24])
def test_all_settings_can_be_sampled_with_and_differ(steps):
    settings = ablated_settings(SamplingConfig(steps=steps, consistency=0.3, anchors=2))
    assert next(iter(settings)) == PLAIN
    assert settings[PLAIN].consistency == 0
    assert len({repr(s) for s in settings.values()}) == len(settings) == (13 if steps > 1 else 11)
    for name, one in settings.items():
        assert one.consistency_start < steps, name
        assert one.steps == steps


def test_the_folder_of_an_evaluation_is_not_one_of_ablations(tmp_path):
    (tmp_path / "evaluation.json").write_text("{}")
    run = EvaluationRun(Model(), PEOPLE, SamplingConfig(), None)
    with pytest.raises(ConfigError, match="holds an evaluation without ablations"):
        run_ablations(sampling_ablations(run), tmp_path)
