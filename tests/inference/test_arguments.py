"""Python calls: every argument of the wrong kind is one short ConfigError that names it."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from genaffect_jax.config import SamplingConfig, with_changes
from genaffect_jax.errors import ConfigError, DataError, shown
from genaffect_jax.inference import arguments
from genaffect_jax.inference.references import as_identities, read_reference
from genaffect_jax.pipeline import Pipeline

SIZE = 32
IMAGE = np.zeros((SIZE, SIZE, 3), np.uint8)


def refusal(call) -> str:
    with pytest.raises(ConfigError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 300
    assert "--" not in message
    return message


def unread(path: Path, size: int) -> np.ndarray:
    raise DataError(f"{path}: cannot be opened")


@pytest.mark.parametrize(
    "identity",
    [
        *(None, True, 7, 1.5, np.int64(7), "", b"seed:1", b"x" * 10**6, {"seed:1"}, {"a": 1}, ["seed:1"]),
        *((one for one in ("seed:1",)), Image.fromarray(IMAGE), jax.numpy.zeros((SIZE, SIZE, 3), "uint8"), object()),
        *(IMAGE / 255.0, IMAGE.astype(np.float32), IMAGE.astype(np.int16), IMAGE[..., 0], IMAGE[None], IMAGE[:8]),
        *(np.zeros((SIZE, SIZE, 4), np.uint8), np.array(3), np.array(["seed:1"]), np.zeros((0, 0, 3), np.uint8)),
        *("seed:", "seed:-1", "seed:1.5", "seed: 1", "seed:\u0661", "seed:\u00b2", "seed:1_0", "seed:" + "9" * 5000),
        f"seed:{2**64}",
    ],
)
def test_no_identity(identity):
    assert refusal(lambda: read_reference(identity, SIZE, unread)).startswith("identity=")


@pytest.mark.parametrize("identities", [[], (), ["seed:1"] * 5, [IMAGE] * 5])
def test_no_number_of_references(identities):
    assert refusal(lambda: as_identities(identities)).endswith("images, must be 1 to 4")


def test_identities_of_all_kinds_that_are_allowed():
    assert as_identities(np.str_("seed:1")) == (["seed:1"], ["seed:1"])
    assert as_identities((IMAGE, Path("a.png")))[1] == ["array", "a.png"]
    assert read_reference(np.str_("seed:1"), SIZE, unread).shape == IMAGE.shape
    assert read_reference(f"seed:{2**64 - 1}", SIZE, unread).shape == IMAGE.shape
    assert read_reference(IMAGE[:, ::-1], SIZE, unread).shape == IMAGE.shape


@pytest.mark.parametrize("path", ["a\nb.png", "a\0b", "\udc80.png", "x" * 5000])
def test_a_file_of_an_odd_name_is_named_in_one_short_line(path):
    with pytest.raises(DataError) as error:
        read_reference(path, SIZE, lambda path, size: unread(Path("it"), size))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"steps": value}
            for value in (None, "4", 4.0, np.float32(4), True, np.bool_(True), [1], np.array([1]), b"4")
        ),
        *({"steps": value} for value in (b"4", 0, -1, 10**30, float("inf"), float("nan"))),
        *({"seed": value} for value in (None, 1.0, "1", -1, 2**64, True)),
        *({"guidance_expression": value} for value in (None, "x", 1j, True, float("nan"), 10**400)),
        *({"identity_scale": value} for value in ("1", None, [None], np.ones((2, 2)), [[1]], (x for x in [1.0]))),
        *({"guidance_interval": value} for value in (0.5, (0,), None, "01", (1, 0), np.array([0, 2]))),
        *({"solver": value} for value in (None, 1, b"euler", "EULER")),
        *({"consistency_layers": value} for value in ([0.5], None, "0")),
        *({"shared_mask": value} for value in (3, b"x", ["a.png"])),
        *({name: 1} for name in ("guidance_scale", "model", "run", "stpes", "")),
    ],
)
def test_no_setting(changes):
    assert refusal(lambda: with_changes(SamplingConfig(), changes)).startswith(next(iter(changes)))


def test_numbers_and_arrays_of_numpy_are_settings():
    changed = with_changes(
        SamplingConfig(),
        {
            "steps": np.int8(3),
            "seed": np.uint64(2**64 - 1),
            "guidance": np.float32(1.5),
            "identity_scale": np.ones(5),
            "guidance_interval": np.array([0, 1]),
            "expression_scale": 2,
            "consistency_layers": np.array([0, 1]),
        },
    )
    assert (changed.steps, changed.seed, changed.guidance) == (3, 2**64 - 1, 1.5)
    assert (changed.identity_scale, changed.guidance_interval) == ((1.0,) * 5, (0.0, 1.0))
    assert (changed.expression_scale, changed.consistency_layers) == ((2.0,), (0, 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("model", value) for value in (None, 3, "", b"x", ["a"], "a\0b")),
        *(("checkpoint", value) for value in (None, 1.5, True, b"best", ["best"])),
        *(("align", value) for value in ("foo", 3, True, ["face"])),
        *(("face_index", value) for value in (-1, "1", None, 1.0, True)),
        *(("face_models", value) for value in (3, b"x", "")),
        *(("loras", value) for value in ("a.safetensors", ["a"], None, [("a", "1")], [("a", True)], [(3, 1.0)])),
        *(("expression_encoder", value) for value in (3, b"x", ["a"])),
        *(("devices", value) for value in ([], 3, "cpu", [0], [None])),
    ],
)
def test_no_argument_of_load(name, value):
    given = {"model": "no_such_folder", name: value}
    assert refusal(lambda: Pipeline.load(**given)).startswith(f"{name}=")


def test_arguments_of_load_that_are_allowed():
    assert arguments.checked_checkpoint(np.int64(1200)) == arguments.checked_checkpoint(1200) == "1200"
    assert arguments.checked_loras([("a", 1), (Path("b"), np.float32(0.5))]) == [(Path("a"), 1.0), (Path("b"), 0.5)]
    assert arguments.checked_devices(None) == jax.local_devices()
    assert arguments.checked_face_index(np.int32(2)) == 2


def test_values_are_shown_in_one_short_line():
    assert shown(IMAGE) == "uint8 array of shape (32, 32, 3)"
    assert shown("a\nb") == r"'a\nb'"
    assert shown(np.int64(3)) == "np.int64(3)"
    assert shown("x" * 100, most=10) == "'xxxxxxxxx... (102 characters)"
