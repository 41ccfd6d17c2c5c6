"""The evidence sheets: what is laid out where, what a sweep changes, and what the encoders' figures mean."""

import json
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.config.encoders import FaceEncoderConfig
from genaffect_jax.expressions.action_units import neutral
from genaffect_jax.expressions.grammar import parse_expressions
from genaffect_jax.models.face_encoders.encoder import AvatarEncoder, build_encoder

SIDE = 64
PEOPLE = ("seed:1", "seed:2", "seed:3")
SMALL = {"image_size": 16, "widths": (8, 8), "depths": (0, 0), "norm_num_groups": 4, "hidden": 8, "neck": 4}


@pytest.fixture(scope="module")
def sheets(load_benchmark):
    return load_benchmark("factor_sheets")


def encoder(target, width):
    config = FaceEncoderConfig(target=target, width=width, **SMALL)
    network, rng = build_encoder(config), np.random.default_rng(0)
    parameters = {
        name: jnp.asarray(
            rng.standard_normal(s.shape) * np.prod(s.shape[:-1]) ** -0.5 + name.endswith("scale"), s.dtype
        )
        for name, s in network.shapes.items()
    }
    return AvatarEncoder(
        name=f"{target}_judge",
        licence="Apache-2.0",
        checksum="0" * 64,
        config=config,
        network=network,
        parameters=parameters,
    )


@pytest.fixture(scope="module")
def encoders():
    return encoder("identity", 12), encoder("expression", 40)


@dataclass(frozen=True)
class Drawn:
    """What the sheets use of an avatar set."""

    reference: Any
    images: Any
    expressions: Any


class Artist:
    """In the place of a trained model: draws the person asked for, the expression as far as its branch counts."""

    name = "artist"

    def __init__(self):
        self.asked = []

    def __call__(
        self,
        identity,
        expressions,
        *,
        steps=24,
        seed=0,
        guidance_identity=1.0,
        guidance_expression=1.5,
        identity_scale=1.0,
        expression_scale=1.0,
    ):
        self.asked.append((identity, identity_scale, expression_scale, guidance_identity, guidance_expression, seed))
        person = sample_identity(int(identity.removeprefix("seed:")))
        images = [render(person, np.clip(expression_scale * e.vector, -1, 1), SIDE) for e in expressions]
        return Drawn(render(person, neutral(), SIDE), np.stack(images), tuple(expressions))


def test_the_grid_has_people_in_rows_and_expressions_in_columns(sheets):
    expressions = parse_expressions("joy; anger")
    sets = sheets.grid(Artist(), PEOPLE, expressions, steps=2, seed=0)
    for person, drawn in zip(PEOPLE, sets, strict=True):
        who = sample_identity(int(person.removeprefix("seed:")))
        np.testing.assert_array_equal(drawn.images[1], render(who, expressions[1].vector, SIDE))
    sheet = sheets.grid_sheet(PEOPLE, sets)
    rows, columns = sheet.shape[0] // 3, sheet.shape[1] // 3
    for row, drawn in enumerate(sets):
        for column, image in enumerate((drawn.reference, *drawn.images)):
            cell = sheet[row * rows : (row + 1) * rows + 8, column * columns : (column + 1) * columns + 8]
            found = any(
                np.array_equal(cell[y : y + SIDE, x : x + SIDE], image)
                for y in range(len(cell) - SIDE + 1)
                for x in range(cell.shape[1] - SIDE + 1)
            )
            assert found, (row, column)


def test_a_sweep_changes_one_scale_and_nothing_else(sheets):
    for branch, place, other in (("identity_scale", 1, 2), ("expression_scale", 2, 1)):
        artist = Artist()
        sheets.sweep(artist, "seed:5", parse_expressions("joy"), branch, steps=2, seed=7)
        assert [asked[place] for asked in artist.asked] == [0.0, 0.5, 1.0, 1.5, 2.0]
        assert {(asked[0], asked[other], *asked[3:]) for asked in artist.asked} == {("seed:5", 1.0, 1.0, 1.0, 7)}


def test_everything_is_written_and_measured_by_the_encoders_given(sheets, encoders, tmp_path):
    report = sheets.make_sheets(
        Artist(),
        tmp_path,
        PEOPLE,
        parse_expressions("joy; anger"),
        parse_expressions("joy; fear"),
        encoders,
        steps=2,
        seed=0,
    )
    assert json.loads((tmp_path / "factors.json").read_text()) == report
    for name in ("factors", "identity_scale", "expression_scale"):
        with Image.open(tmp_path / f"{name}.png") as sheet:
            assert sheet.width > 3 * SIDE
    assert report["grid"]["images"] == 6
    assert "evaluators" in report["measured_by"]
    assert report["grid"]["identity_encoder"] == "identity_judge"
    # Without its expression branch the artist repeats the reference: same person, no step towards the expression.
    silent = report["expression_scale"]["0"]
    assert silent["identity_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert silent["expression_error"] == pytest.approx(silent["reference_error"], abs=1e-6)
    assert report["expression_scale"]["2"]["identity_cosine"] < 1.0 - 1e-6
    # At scale 1 the artist draws without a mistake, for all people and expressions of the grid.
    assert report["true_drawings"] == report["grid"] == report["expression_scale"]["1"]


def test_without_encoders_nothing_claims_to_be_measured(sheets, tmp_path):
    joy = parse_expressions("joy")
    report = sheets.make_sheets(Artist(), tmp_path, PEOPLE[:1], joy, joy, None, steps=2, seed=0)
    assert not {"measured_by", "grid", "identity_scale", "expression_scale"} & report.keys()
