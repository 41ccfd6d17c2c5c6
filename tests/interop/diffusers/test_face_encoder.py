"""Face encoders go into a folder and back without the change of a bit; folders that do not fit are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.flax import load_file as load_ours
from safetensors.numpy import load_file, save_file
from support.face_encoder_files import CONFIGS, HEADER, random_file

from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers.face_encoder import face_encoder_rules, read_face_encoder, write_face_encoder
from genaffect_jax.io.weight_file import read_config, read_metadata, resolve_weights, save_weights, stored_dtype
from genaffect_jax.models.face_encoders.encoder import build_encoder, load_encoder

WHOLE = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_weight_file_comes_back_bit_for_bit_in_its_own_type(name: str, dtype: str, tmp_path: Path) -> None:
    source, back = tmp_path / "source.safetensors", tmp_path / "back.safetensors"
    random_file(CONFIGS[name], source, dtype)
    write_face_encoder(str(source), tmp_path / "folder")
    config, parameters, metadata = read_face_encoder(tmp_path / "folder")
    assert {str(p.dtype) for p in parameters.values()} == {dtype}
    assert {str(p.dtype) for p in load_file(tmp_path / "folder" / WHOLE).values()} == {dtype}
    save_weights(parameters, back, dtype, config, metadata)
    expected, found = load_ours(source), load_ours(back)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key].dtype, found[key].tobytes()) == (value.dtype, value.tobytes()), key
    assert read_metadata(back) == read_metadata(source)


@pytest.mark.parametrize("name", ["identity_avatar", "expression_avatar", "identity_evaluator", "expression_evaluator"])
def test_bundled_encoders_come_back_with_their_header(name: str, tmp_path: Path) -> None:
    path = resolve_weights(f"package:{name}")
    write_face_encoder(f"package:{name}", tmp_path / "folder")
    config, parameters, metadata = read_face_encoder(tmp_path / "folder")
    dtype = stored_dtype(path)  # float32 for those in 8 bits
    expected = {key: value.astype(dtype) for key, value in load_encoder(f"package:{name}").parameters.items()}
    assert parameters.keys() == expected.keys()
    assert all(parameters[key].tobytes() == value.tobytes() for key, value in expected.items())
    assert {str(p.dtype) for p in parameters.values()} == {dtype}
    assert config == read_config(path, type(config))
    assert metadata == {key: text for key, text in read_metadata(path).items() if key != "config"}


def test_a_folder_in_float32_holds_and_returns_the_numbers_of_a_bfloat16_file(tmp_path: Path) -> None:
    random_file(CONFIGS["iresnet"], tmp_path / "source.safetensors", "bfloat16")
    write_face_encoder(str(tmp_path / "source.safetensors"), tmp_path / "folder", dtype="float32")
    _, parameters, _ = read_face_encoder(tmp_path / "folder")
    _, narrow, _ = read_face_encoder(tmp_path / "folder", dtype="bfloat16")
    for key, value in load_ours(tmp_path / "source.safetensors").items():
        np.testing.assert_array_equal(np.asarray(parameters[key]), np.asarray(value, np.float32))
        assert narrow[key].tobytes() == value.tobytes()


def test_no_line_of_a_table_is_superfluous() -> None:
    for config in (CONFIGS[name] for name in ("residual", "transformer", "iresnet")):
        names = build_encoder(config).shapes
        for rule in face_encoder_rules(config):
            assert any(rule.key(name) for name in names), rule


def edit_config(change: dict[str, object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **change}))

    return edit


def edit_tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / WHOLE)
        change(tensors)
        save_file(tensors, folder / WHOLE)

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit_tensors(lambda t: t.pop("blocks.0.conv1.weight")), r"key blocks\.0\.conv1\.weight: missing"),
        (
            edit_tensors(lambda t: t.update({"tail.9.weight": np.zeros(1, np.float32)})),
            r"key tail\.9\.weight: unmapped",
        ),
        (
            edit_tensors(lambda t: t.update({"blocks.77.conv.bias": np.zeros(1, np.float32)})),
            r"key blocks\.77\.conv\.bias: superfluous",
        ),
        (
            edit_tensors(lambda t: t.update({"head.net.2.bias": np.zeros(3, np.float32)})),
            r"head\.net\.2\.bias: shape \(3,\), must be \(40,\)",
        ),
        (edit_config({"architecture": "iresnet", "depths": [1, 1, 1, 1]}), r"key blocks\.0\.norm1\.weight: unmapped"),
        (edit_config({"architecture": "vgg"}), "architecture=vgg: must be one of residual, transformer, iresnet"),
        (edit_config({"_class_name": "AutoencoderKL"}), "must be 'GenAffectFaceEncoder'"),
        (edit_config({"colour": 1}), "unknown keys .'colour'."),
        (edit_config({"licence": ""}), "licence='': must be a text that is not empty"),
        (
            edit_config({"metadata": {"name": "other"}}),
            "metadata=.*must be texts, without .'config', 'licence', 'name'",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    random_file(CONFIGS["residual"], tmp_path / "source.safetensors")
    write_face_encoder(str(tmp_path / "source.safetensors"), tmp_path / "folder")
    damage(tmp_path / "folder")
    with pytest.raises(WeightsError, match=words):
        read_face_encoder(tmp_path / "folder")


def test_what_is_no_encoder_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="header entry 'config'"):
        write_face_encoder("package:autoencoder_tiny", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_the_config_says_whose_the_weights_are(tmp_path: Path) -> None:
    random_file(CONFIGS["transformer"], tmp_path / "source.safetensors")
    write_face_encoder(str(tmp_path / "source.safetensors"), tmp_path / "folder")
    values = json.loads((tmp_path / "folder" / "config.json").read_text())
    others = {key: text for key, text in HEADER.items() if key not in ("name", "licence")}
    assert (values["name"], values["licence"], values["metadata"]) == (HEADER["name"], HEADER["licence"], others)
