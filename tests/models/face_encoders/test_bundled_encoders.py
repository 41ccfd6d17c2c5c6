"""The four encoders in the package do on people nobody has trained on what `docs/notes/face_encoders.md` says of
them."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from genaffect_jax.data.face_encoders import ExpressionEncoder, IdentityEncoder
from genaffect_jax.data.sources.procedural import examples_of
from genaffect_jax.data.sources.stored import render_redressed
from genaffect_jax.io.weight_file import checksum, read_metadata, resolve_weights
from genaffect_jax.models.face_encoders.encoder import load_encoder
from genaffect_jax.training.face_encoder.report import HeldOut, expression_report, identity_report

NAMES = ("identity_avatar", "identity_evaluator", "expression_avatar", "expression_evaluator")
FIRST, PEOPLE, EACH, SIDE = 1_000_000, 12, 4, 128  # people from 0 to 6,399 were drawn for the trainings


class Strangers:
    """Avatars in the clothes of others, as in training, of numbers that no training has drawn."""

    def __init__(self):
        self.examples = [p for i in range(PEOPLE) for p in examples_of(FIRST + i, EACH, 1.0)]

    def load(self, index):
        person = FIRST + index // EACH
        return render_redressed(person, self.examples[index].expression, 7 * person + index, SIDE)


@pytest.fixture(scope="module")
def strangers():
    source = Strangers()
    return HeldOut(source, [p.identity for p in source.examples], None, procedural_people=range(FIRST, FIRST + 6))


@pytest.fixture(scope="module")
def encoders():
    return {name: load_encoder(f"package:{name}") for name in NAMES}


@pytest.mark.parametrize("name", NAMES[:2])
def test_identity_encoders_tell_people_apart_across_expressions_and_clothes(encoders, strangers, name):
    report = identity_report(encoders[name], strangers)
    assert report["people"] == PEOPLE
    assert report["verification"]["accuracy"] > 0.97
    assert report["verification"]["auc"] > 0.99
    only = report["mean_cosine_when_only_this_changes"]
    assert min(only["expression"], only["clothes_and_background"]) > 0.85
    assert abs(only["person"]) < 0.2


@pytest.mark.parametrize(("name", "error"), [("expression_avatar", 0.04), ("expression_evaluator", 0.06)])
def test_expression_encoders_read_action_units_and_do_not_see_who_shows_them(encoders, strangers, name, error):
    # The constant guess is made of other people's expressions, as the report of a training makes it.
    typical = np.mean([p.expression for i in range(100) for p in examples_of(i, EACH, 1.0)], axis=0)
    report = expression_report(encoders[name], strangers, typical)
    found = report["absolute_error"]
    assert found["mean"] < error < 0.6 * found["baseline"]
    assert found["active"] < 0.6 * found["active_baseline"]
    moved = report["deviation_of_predictions"]
    assert moved["same_expression_on_different_people"] < 0.3 * moved["different_expressions_on_same_person"]


def test_the_files_say_whose_they_are_and_are_small(encoders):
    for name, encoder in encoders.items():
        path = resolve_weights(f"package:{name}")
        assert isinstance(encoder, IdentityEncoder if name.startswith("identity") else ExpressionEncoder)
        assert (encoder.name, encoder.licence, encoder.checksum) == (name, "Apache-2.0", checksum(path))
        assert path.stat().st_size < 4e6
        with safe_open(path, framework="flax") as file:
            types = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (no mapping)
        assert types == ({"I8", "F32"} if name in ("identity_evaluator", "expression_avatar") else {"BF16"}), name


def test_the_evaluators_share_neither_network_nor_seed_with_the_conditioning_pair_but_the_people_held_out(encoders):
    trainings = {n: json.loads(read_metadata(resolve_weights(f"package:{n}"))["training"]) for n in NAMES}
    assert len({t["seed"] for t in trainings.values()}) == len(NAMES)
    assert {(t["split_seed"], t["held_out_people"]) for t in trainings.values()} == {(0, 332)}
    for target in ("identity", "expression"):
        judge, conditioning = (encoders[f"{target}_{role}"].config for role in ("evaluator", "avatar"))
        assert (judge.architecture, judge.widths, judge.depths) != (
            conditioning.architecture,
            conditioning.widths,
            conditioning.depths,
        )
