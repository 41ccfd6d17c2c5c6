"""Exported face encoders compute in PyTorch, without this package, what ours compute in JAX."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.face_encoder_files import CONFIGS, random_file

from genaffect_jax.config.encoders import FaceEncoderConfig
from genaffect_jax.data.sources.procedural import examples_of
from genaffect_jax.data.sources.stored import render_redressed
from genaffect_jax.interop.diffusers.face_encoder import (
    FACE_ENCODER,
    FaceEncoderHeader,
    read_face_encoder,
    write_face_encoder,
)
from genaffect_jax.interop.diffusers.rules import match
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.face_encoders.encoder import AvatarEncoder, load_encoder

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from genaffect_jax.interop.torch import genaffect_faces  # noqa: E402 (needs torch)
from genaffect_jax.interop.torch.genaffect_faces import GenAffectFaceEncoder  # noqa: E402

pytestmark = pytest.mark.torch
TOLERANCE = {"identity": 1e-5, "expression": 2e-5}
PRESETS = ("identity_avatar", "expression_avatar", "identity_evaluator", "expression_evaluator", "arcface_r50")


def exported(source: str, folder: Path) -> tuple[AvatarEncoder, GenAffectFaceEncoder]:
    """Ours, and the same as diffusers loads it."""
    write_face_encoder(source, folder)
    return load_encoder(source), GenAffectFaceEncoder.from_pretrained(folder)


def small(name: str, folder: Path) -> tuple[AvatarEncoder, GenAffectFaceEncoder]:
    random_file(CONFIGS[name], folder / "source.safetensors")
    return exported(str(folder / "source.safetensors"), folder / "folder")


def numbers(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)


def to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def assert_same(encoder: AvatarEncoder, model: GenAffectFaceEncoder, images: np.ndarray) -> None:
    ours = jax.jit(lambda parameters, x: encoder.network.merge(parameters)(x))(encoder.parameters, images)
    with torch.no_grad():
        theirs = model(to_torch(images))
    assert theirs.dtype == torch.float32
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=0, atol=TOLERANCE[encoder.config.target])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_gives_our_vectors_for_images_of_any_size(name: str, tmp_path: Path) -> None:
    encoder, model = small(name, tmp_path)
    side = encoder.config.image_size
    for pixels in (side // 2 - 1, side, 2 * side, 3 * side + 5):
        assert_same(encoder, model, numbers(2, pixels))
    vectors = model(to_torch(numbers(3, 20))).detach().numpy()
    assert vectors.shape == (3, encoder.width)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["residual_expression", "transformer"])
def test_faint_activations_are_normalised_with_our_epsilons(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    kept = ("head.", "trunk.neck.", "trunk.norm.", "norm1", "norm2", "norm_attention", "norm_mlp")
    parameters = {
        key: value if any(part in key for part in kept) else value * 1e-3
        for key, value in random_file(config, tmp_path / "source.safetensors").items()
    }
    header = {"name": "faint", "licence": "MIT"}
    save_weights(parameters, tmp_path / "faint.safetensors", "float32", config, header)
    encoder, model = exported(str(tmp_path / "faint.safetensors"), tmp_path / "folder")
    assert_same(encoder, model, numbers(2, config.image_size))


@pytest.mark.parametrize("name", ["identity_avatar", "expression_avatar"])
def test_bundled_encoders_give_our_vectors_for_avatars(name: str, tmp_path: Path) -> None:
    encoder, model = exported(f"package:{name}", tmp_path / "folder")
    people = range(1_000_000, 1_000_004)
    avatars = np.stack([render_redressed(p, examples_of(p, 1, 1.0)[0].expression, p, 128) for p in people])
    for images in (avatars, avatars[:, ::2, ::2], avatars[:, 5:106, 20:121]):
        assert_same(encoder, model, images / np.float32(127.5) - 1)
        read = model.encode(to_torch(images) / 127.5 - 1).detach()
        np.testing.assert_allclose(read, encoder(images), rtol=0, atol=TOLERANCE[encoder.config.target])


def test_read_expressions_stay_in_the_channels_ranges_as_ours_do(tmp_path: Path) -> None:
    parameters = random_file(CONFIGS["transformer"], tmp_path / "small.safetensors")
    wild = {**parameters, "head.down.kernel": 20 * parameters["head.down.kernel"]}
    source, header = tmp_path / "wild.safetensors", {"name": "wild", "licence": "MIT"}
    save_weights(wild, source, "float32", CONFIGS["transformer"], header)
    encoder, model = exported(str(source), tmp_path / "folder")
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    with torch.no_grad():
        plain, clipped = model(to_torch(images) / 127.5 - 1), model.encode(to_torch(images) / 127.5 - 1)
    assert (plain[:, :-5] < 0).any()  # else clipping would not show
    assert (plain[:, -5:] < -1).any()
    assert (plain > 1).any()
    np.testing.assert_allclose(clipped, encoder(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["residual", "transformer", "iresnet"])
def test_gradients_reach_the_images_as_they_do_in_jax(name: str, tmp_path: Path) -> None:
    encoder, model = small(name, tmp_path)
    images = numbers(2, 23)
    weights = np.random.default_rng(1).standard_normal((2, encoder.width)).astype(np.float32)
    loss = jax.jit(jax.grad(lambda x: jnp.sum(encoder.network.merge(encoder.parameters)(x) * weights)))
    theirs = to_torch(images).requires_grad_()
    (model(theirs) * torch.from_numpy(weights)).sum().backward()
    expected = np.asarray(loss(images))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(theirs.grad.permute(0, 2, 3, 1), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_diffusers_saves_is_read_bit_for_bit(name: str, tmp_path: Path) -> None:
    parameters = random_file(CONFIGS[name], tmp_path / "source.safetensors")
    _, model = exported(str(tmp_path / "source.safetensors"), tmp_path / "folder")
    model.save_pretrained(tmp_path / "theirs")
    config, back, metadata = read_face_encoder(tmp_path / "theirs")
    assert (config, metadata) == read_face_encoder(tmp_path / "folder")[::2]
    assert back.keys() == parameters.keys()
    for key, value in parameters.items():
        assert (back[key].dtype, back[key].tobytes()) == (value.dtype, value.tobytes()), key
    again = GenAffectFaceEncoder.from_pretrained(tmp_path / "theirs")
    images = to_torch(numbers(1, 20))
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_key_and_shape_of_a_full_size_encoder_has_one_place(preset: str) -> None:
    config = getattr(FaceEncoderConfig, preset)()
    with torch.device("meta"):
        model = GenAffectFaceEncoder(**dataclasses.asdict(config))
    keys = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    header = FaceEncoderHeader(config, ())
    shapes = {name: s.shape for name, s in FACE_ENCODER.network(header).shapes.items()}
    assert {piece.key: piece.shape for piece in match(FACE_ENCODER.rules(header), shapes, keys, preset)} == keys


def test_the_constructor_has_our_fields_and_defaults() -> None:
    given = {key: value for key, value in GenAffectFaceEncoder().config.items() if not key.startswith("_")}
    fields = dataclasses.asdict(FaceEncoderConfig())
    assert given == {**fields, "name": "", "licence": "", "metadata": None}


@pytest.mark.parametrize("name", CONFIGS)
def test_no_part_has_the_name_of_a_config_entry_which_would_hide_it(name: str) -> None:
    model = GenAffectFaceEncoder(**dataclasses.asdict(CONFIGS[name]))
    parts = {key.split(".")[0] for key in model.state_dict()}
    assert not [part for part in parts if hasattr(model.config, part)]


def test_other_names_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"architecture='vgg'.*\['residual', 'transformer', 'iresnet'\]"):
        GenAffectFaceEncoder(architecture="vgg")
    with pytest.raises(ValueError, match=r"target='age'.*identity or expression"):
        GenAffectFaceEncoder(target="age")
    with pytest.raises(RuntimeError):
        GenAffectFaceEncoder()(torch.zeros(1, 3, 112, 96))


ALONE = """
import sys
for name in ("jax", "flax", "genaffect_jax"):
    sys.modules[name] = None  # an import of it fails
import json, torch
from genaffect_faces import GenAffectFaceEncoder
images = torch.tensor(json.loads(sys.stdin.read()))
print(json.dumps(GenAffectFaceEncoder.from_pretrained("folder")(images).tolist()))
"""


def test_the_file_runs_alone_without_jax_and_without_this_package(tmp_path: Path) -> None:
    _, model = small("residual", tmp_path)
    shutil.copy(genaffect_faces.__file__, tmp_path)
    images = to_torch(numbers(1, 9))
    command = [sys.executable, "-c", ALONE]
    text = json.dumps(images.tolist())
    run = subprocess.run(command, input=text, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    np.testing.assert_allclose(json.loads(run.stdout), model(images).detach(), rtol=0, atol=1e-6)
