"""Weight folders keep every bit, go straight to their devices, and are refused with one clear error if damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genaffect_jax.config import AutoencoderConfig, MeshConfig, MMDiTConfig
from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers import tensor_files
from genaffect_jax.interop.diffusers.tensor_files import ArrayTensors, write_tensors
from genaffect_jax.interop.diffusers.weights import (
    AUTOENCODER,
    TRANSFORMER,
    load_autoencoder,
    load_transformer,
    read_autoencoder,
    read_transformer,
    save_autoencoder,
    save_transformer,
    write_transformer,
)
from genaffect_jax.io import exchange
from genaffect_jax.models.functional import Functional, Parameters, parameters_of
from genaffect_jax.models.mmdit.model import MMDiT
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.sharding import parameter_shardings

CONFIG = MMDiTConfig(
    sample_size=4,
    num_layers=4,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=6,
    pooled_projection_dim=5,
    in_channels=4,
    pos_embed_max_size=3,
    dual_attention_layers=(0, 1),
    register_tokens=0,
)
WHOLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{WHOLE}.index.json"


def random_parameters(network: Functional, dtype: str = "float32") -> Parameters:
    rng = np.random.default_rng(0)
    return {n: jnp.asarray(rng.standard_normal(s.shape, np.float32), dtype) for n, s in network.shapes.items()}


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return random_parameters(TRANSFORMER.network(CONFIG))


@pytest.fixture(scope="module")
def saved(parameters: Parameters, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same weights in one file and in shards. Tests change copies only."""
    folders = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("shards")
    write_transformer(CONFIG, parameters, folders[0])
    write_transformer(CONFIG, parameters, folders[1], max_shard_bytes=20_000)
    return folders


def assert_same(found: Parameters, expected: Parameters) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert np.asarray(found[name]).tobytes() == np.asarray(value).tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard_bytes", [2**30, 20_000], ids=["whole", "shards"])
def test_a_saved_transformer_comes_back_bit_for_bit(dtype: str, shard_bytes: int, tmp_path: Path) -> None:
    network = TRANSFORMER.network(CONFIG)
    before = random_parameters(network, dtype)
    save_transformer(network.merge(before), tmp_path / "new" / "a", max_shard_bytes=shard_bytes)
    files = {p.name for p in (tmp_path / "new" / "a").iterdir()}
    if shard_bytes == 2**30:
        assert files == {"config.json", WHOLE}
    else:
        assert INDEX in files
        assert len(files) > 4
    model = load_transformer(tmp_path / "new" / "a")
    assert model.config == CONFIG
    assert_same(parameters_of(model), before)


def test_a_saved_autoencoder_comes_back_bit_for_bit(tmp_path: Path) -> None:
    config = AutoencoderConfig(block_out_channels=(4, 8), norm_num_groups=2, latent_channels=2, shift_factor=0.125)
    before = random_parameters(AUTOENCODER.network(config), "bfloat16")
    save_autoencoder(AUTOENCODER.network(config).merge(before), tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    model = load_autoencoder(tmp_path, compute_dtype="bfloat16")  # the whole pipeline's folder
    assert model.config == config
    assert_same(parameters_of(model), before)
    assert_same(
        read_autoencoder(tmp_path / "vae", dtype="float32")[1], {n: p.astype("float32") for n, p in before.items()}
    )


def test_keys_and_axes_in_the_file_are_those_of_diffusers(saved: tuple[Path, Path], parameters: Parameters) -> None:
    tensors = load_file(saved[0] / WHOLE)
    query = parameters["segments.1.layers.image_qkv.query.kernel"]  # blocks 0 and 1 are dual, 2 plain, 3 the last
    np.testing.assert_array_equal(tensors["transformer_blocks.2.attn.to_q.weight"], query[0].T)
    np.testing.assert_array_equal(
        tensors["transformer_blocks.1.attn2.norm_k.weight"],
        parameters["segments.0.layers.image_attention.qkv.key_norm.scale"][1],
    )
    np.testing.assert_array_equal(tensors["pos_embed.pos_embed"][0, 5], parameters["position_table"][1, 2])
    assert tensors["pos_embed.proj.weight"].shape == (16, 4, 2, 2)
    assert json.loads((saved[0] / "config.json").read_text())["_class_name"] == "SD3Transformer2DModel"


def test_numbers_are_rounded_to_the_type_asked_for(saved: tuple[Path, Path], parameters: Parameters, tmp_path) -> None:
    cast_kernels = {name: p.astype("bfloat16") for name, p in parameters.items()}
    assert_same(read_transformer(saved[0], dtype="bfloat16")[1], cast_kernels)
    write_transformer(CONFIG, parameters, tmp_path / "a", dtype="bfloat16")
    assert_same(read_transformer(tmp_path / "a")[1], cast_kernels)


def test_a_mesh_receives_each_parameter_cut_as_the_sharding_rules_say(saved, parameters: Parameters, tmp_path) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    network = TRANSFORMER.network(CONFIG)
    expected = parameter_shardings(network.logical_axes, network.shapes, mesh)
    found = parameters_of(load_transformer(saved[1], mesh=mesh))
    assert {name: p.sharding for name, p in found.items()} == expected
    cut = found["segments.0.layers.image_qkv.query.kernel"]
    assert cut.addressable_shards[0].data.shape == (2, 4, 16)
    assert_same(found, parameters)
    write_transformer(CONFIG, found, tmp_path / "a")
    assert (tmp_path / "a" / WHOLE).read_bytes() == (saved[0] / WHOLE).read_bytes()


def test_a_variant_is_read_by_its_name(saved: tuple[Path, Path], parameters: Parameters, tmp_path: Path) -> None:
    for folder, name in zip(saved, (WHOLE, INDEX), strict=True):
        copy = shutil.copytree(folder, tmp_path / name)
        stem, suffix = name.rsplit(".", 1)
        (copy / name).rename(copy / f"{stem}.fp16.{suffix}")
        assert_same(read_transformer(copy, variant="fp16")[1], parameters)
        with pytest.raises(WeightsError, match="has weights of the variant fp16 alone"):
            read_transformer(copy)


def test_arrays_in_any_order_of_memory_are_written_with_their_values(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "transposed": rows.T,
        "column-major": np.asfortranarray(rows),
        "reversed": rows[::-1],
        "strided": rows[:, ::2, 1:],
        "scalar": np.array(3.0, np.float32),
    }

    class AsTheyLie(ArrayTensors):
        def read(self, key: str) -> np.ndarray:
            return arrays[key]

    for number, tensors in enumerate((ArrayTensors(arrays), AsTheyLie(arrays))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_tensors(folder, tensors, 2**30)
        stored = load_file(folder / WHOLE)
        assert stored.keys() == arrays.keys()
        for key, value in arrays.items():
            assert stored[key].shape == value.shape
            np.testing.assert_array_equal(stored[key], value, err_msg=key)


def edit_tensors(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / WHOLE)
        change(tensors)
        save_file(tensors, folder / WHOLE)

    return edit


def edit_json(name: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return edit


def only_a_pickle(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "diffusion_pytorch_model.bin")


def truncate(folder: Path) -> None:
    (folder / WHOLE).write_bytes((folder / WHOLE).read_bytes()[:-10])


def mixed_types(tensors: dict) -> None:
    key = "transformer_blocks.0.ff.net.2.bias"
    tensors[key] = tensors[key].astype(np.float16)


BROKEN_WHOLE = {
    "no configuration": (lambda f: (f / "config.json").unlink(), r"has neither config\.json of a transformer"),
    "damaged configuration": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not JSON"),
    "other class": (edit_json("config.json", lambda c: c.update(_class_name="Flux")), "_class_name is 'Flux'"),
    "other network": (edit_json("config.json", lambda c: c.update(qk_norm="layer_norm")), r"config\.json: .*qk_norm"),
    "a one-file checkpoint by another name": (
        edit_tensors(lambda t: t.update({"model.diffusion_model.final_layer.linear.bias": t["proj_out.bias"]})),
        r"keys begin with model\.diffusion_model\., .* name the \.safetensors file itself",
    ),
    "no weights": (lambda f: (f / WHOLE).unlink(), rf"has neither {WHOLE}"),
    "pickle": (only_a_pickle, "pickle files are not read"),
    "truncated": (truncate, rf"{WHOLE}: damaged"),
    "pickle by another name": (lambda f: (f / WHOLE).write_bytes(b"\x80\x04 a pickle"), rf"{WHOLE}: damaged"),
    "extra key": (edit_tensors(lambda t: t.update(new=np.ones(1, np.float32))), "key new: unmapped"),
    "missing key": (edit_tensors(lambda t: t.pop("proj_out.bias")), r"key proj_out\.bias: missing"),
    "wrong shape": (
        edit_tensors(lambda t: t.update({"proj_out.bias": np.ones(3, np.float32)})),
        r"shape \(3,\), must be \(16,\)",
    ),
    "wrong type": (edit_tensors(lambda t: t.update({"proj_out.bias": np.ones(16)})), r"proj_out\.bias has type F64"),
    "mixed types in one stack": (edit_tensors(mixed_types), r"image_mlp\.down\.bias are stored as .*float16"),
    "whole and index": (lambda f: (f / INDEX).write_text("{}"), "has both"),
    "more blocks than weights": (
        edit_json("config.json", lambda c: c.update(num_layers=5)),
        r"transformer_blocks\.4\.ff\.net\.2\.bias: missing .*; and \d+ more",
    ),
}
BROKEN_SHARDS = {
    "missing shard": (lambda f: next(f.glob("*-00002-of-*")).unlink(), r"shard .*-00002-of-.* is missing"),
    "damaged index": (lambda f: (f / INDEX).write_text("[]"), rf"{INDEX}: must hold a JSON object"),
    "no weight map": (lambda f: (f / INDEX).write_text("{}"), "has no table 'weight_map'"),
    "listed elsewhere": (
        edit_json(INDEX, lambda i: i["weight_map"].update({"proj_out.bias": max(i["weight_map"].values())})),
        r"proj_out\.bias is not in",
    ),
    "not listed": (
        edit_json(INDEX, lambda i: i["weight_map"].pop("proj_out.bias")),
        r"proj_out\.bias in .* is not listed",
    ),
    "outside the folder": (
        edit_json(INDEX, lambda i: i["weight_map"].update({"proj_out.bias": "../secret"})),
        "is no plain file name",
    ),
}


@pytest.mark.parametrize("case", [*BROKEN_WHOLE, *BROKEN_SHARDS])
def test_a_folder_that_does_not_fit_is_refused_with_its_reason(case: str, saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved[case in BROKEN_SHARDS], tmp_path / "broken")
    edit, message = {**BROKEN_WHOLE, **BROKEN_SHARDS}[case]
    edit(folder)
    with pytest.raises(WeightsError, match=message) as error:
        read_transformer(folder)
    assert "broken" in str(error.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="none: no such folder"):
        load_transformer(tmp_path / "none")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(WeightsError, match="transformer: no such folder"):
        load_transformer(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_new_save_replaces_the_old_folder_whole(saved, parameters: Parameters, tmp_path: Path) -> None:
    folder = shutil.copytree(saved[1], tmp_path / "a")
    write_transformer(CONFIG, parameters, folder)
    assert contents(folder) == contents(saved[0])  # no shard is left behind
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_after_a_save_that_was_killed_half_way_the_next_one_succeeds(saved, parameters, tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(saved[1], tmp_path / "a")

    class Killed(BaseException):
        """Nothing runs after it: what would undo the exchange is out of action too."""

    rename = exchange.os.rename

    def die_when_a_shard_leaves(source: Path, target: Path) -> None:
        if Path(target).parent.name == "old" and Path(source).suffix == ".safetensors":
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "_undo", lambda *_: None)
        patch.setattr(exchange.os, "rename", die_when_a_shard_leaves)
        with pytest.raises(Killed):
            write_transformer(CONFIG, parameters, folder)
    assert not (folder / "config.json").exists()
    with pytest.raises(WeightsError):
        load_transformer(folder)
    write_transformer(CONFIG, parameters, folder)
    assert contents(folder) == contents(saved[0])


def test_a_failed_save_keeps_the_old_folder_and_leaves_nothing_else(saved, parameters, tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(saved[0], tmp_path / "a")

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files.os, "fsync", full_disk)
        for target in (folder, tmp_path / "b"):
            with pytest.raises(OSError, match="No space"):
                write_transformer(CONFIG, parameters, target)
    rename = tensor_files.os.rename

    def fail_at_the_last_moment(source: Path, target: Path) -> None:
        if Path(source).parent.name == "new" and Path(source).name == WHOLE:
            raise OSError("Interrupted")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files.os, "rename", fail_at_the_last_moment)
        with pytest.raises(OSError, match="Interrupted"):
            write_transformer(CONFIG, parameters, folder)
    assert contents(tmp_path) == {f"a/{name}": content for name, content in contents(saved[0]).items()}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["notes.txt", "diffusion_pytorch_model.fp16.safetensors", "transformer/config.json"])
def test_a_folder_with_other_files_is_not_written_over(name: str, parameters: Parameters, tmp_path: Path) -> None:
    (tmp_path / "a" / name).parent.mkdir(parents=True)
    (tmp_path / "a" / name).write_text("mine")
    with pytest.raises(WeightsError, match=f"holds other files .*{name.split('/')[0]}"):
        write_transformer(CONFIG, parameters, tmp_path / "a")
    assert contents(tmp_path) == {f"a/{name}": b"mine"}


def test_the_folder_of_another_class_is_not_written_over(saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved[0], tmp_path / "a")
    config = AutoencoderConfig(block_out_channels=(2,), norm_num_groups=1, latent_channels=2)
    model = AUTOENCODER.network(config).merge(random_parameters(AUTOENCODER.network(config)))
    with pytest.raises(WeightsError, match="_class_name is 'SD3Transformer2DModel', must be 'AutoencoderKL'"):
        save_autoencoder(model, folder)


def test_what_diffusers_cannot_hold_is_named_and_not_written(parameters: Parameters, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="register_tokens=3"):
        write_transformer(MMDiTConfig(register_tokens=3), parameters, tmp_path / "a")
    branched = Functional(lambda rngs: MMDiT(CONFIG, branches="decoupled", rngs=rngs))
    with pytest.raises(WeightsError) as error:
        save_transformer(branched.merge(random_parameters(branched)), tmp_path / "a")
    added = branched.shapes.keys() - parameters.keys()
    assert len(added) > 10
    named = [name for name in added if f" {name}" in str(error.value)]
    assert len(named) > 5
    assert f"and {len(added) - len(named)} more" in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_numbers_that_do_not_fit_the_type_are_refused(value: float, parameters: Parameters, tmp_path: Path) -> None:
    changed = {**parameters, "out.bias": parameters["out.bias"].at[3].set(value)}
    with pytest.raises(WeightsError, match=r"proj_out\.bias holds numbers that are not finite as float16"):
        write_transformer(CONFIG, changed, tmp_path / "a", dtype="float16")
    assert not any(tmp_path.iterdir())
    if value == 1e30:
        write_transformer(CONFIG, changed, tmp_path / "a")
        with pytest.raises(WeightsError, match=r"proj_out\.bias holds numbers that are not finite as float16"):
            read_transformer(tmp_path / "a", dtype="float16")


def test_parameters_do_not_change_when_the_files_do(saved, parameters: Parameters, tmp_path: Path) -> None:
    folder = shutil.copytree(saved[0], tmp_path / "a")
    found = read_transformer(folder)[1]
    content = bytearray((folder / WHOLE).read_bytes())
    (folder / WHOLE).write_bytes(content[:-4000] + b"\0" * 4000)
    assert_same(found, parameters)


def test_donated_parameters_are_used_up_safely(saved, parameters: Parameters) -> None:
    # Host buffers become CPU arrays without a copy, also where several devices hold the same numbers.
    found = read_transformer(saved[0], mesh=make_mesh(MeshConfig()))[1]
    doubled = jax.jit(lambda p: {name: 2 * x for name, x in p.items()}, donate_argnums=0)(found)
    for name, value in doubled.items():
        for shard in value.addressable_shards:
            np.testing.assert_array_equal(shard.data, 2 * np.asarray(parameters[name]), err_msg=name)
