"""A `set.json` that somebody edited, or that is damaged, is read or refused in one line."""

import json

import numpy as np
import pytest
from support.avatar_sets import SETTINGS

from genaffect_jax.errors import DataError
from genaffect_jax.expressions.grammar import parse_expressions
from genaffect_jax.inference.avatar_set import AvatarSet


@pytest.fixture
def folder(tmp_path):
    """A folder with a set of joy and fear."""
    expressions = tuple(parse_expressions("joy, fear"))
    images = np.zeros((2, 8, 8, 3), np.uint8)
    AvatarSet(images[:1], images, expressions, (), SETTINGS).save(tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize(
    "place",
    [
        ("images", 0, "expression"),
        ("images", 0, "provenance"),
        ("images", 0, "word"),
        ("images", 0, "weight"),
        ("images", 0, "vector"),
        ("config",),
        ("config", "conditioning"),
        ("seed",),
        ("images",),
        ("references",),
    ],
)
@pytest.mark.parametrize("value", [{}, [], True, "x", 1.5, None, float("nan"), 10**400, "deleted"])
def test_an_edited_description_is_read_or_refused_in_one_line(folder, place, value):
    found = json.loads((folder / "set.json").read_text())
    entry = found
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    if value == "deleted":
        del entry[place[-1]]
    (folder / "set.json").write_text(json.dumps(found))
    refused, avatars = "", None
    try:
        avatars = AvatarSet.load(folder)
    except DataError as e:
        refused = str(e)
    if avatars is None:
        assert (str(folder) in refused, refused.count("\n")) == (True, 0)
    else:
        assert place[0] == "seed" or value == "x" or place[-1] in ("word", "weight"), refused
        avatars.save(folder)  # what was read can be written again
        assert AvatarSet.load(folder).settings == avatars.settings
