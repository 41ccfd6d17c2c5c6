"""Training that starts from released weights, here random ones in the layouts of others."""

import dataclasses
import io
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.config import (
    AutoencoderConfig,
    ConditioningConfig,
    DataConfig,
    DenoiserRun,
    MeshConfig,
    MMDiTConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
)
from genaffect_jax.data.prompts.table import PromptTable, all_prompts
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.diffusers.single_file_writer import write_single_file
from genaffect_jax.interop.diffusers.weights import TRANSFORMER, read_transformer, write_autoencoder, write_transformer
from genaffect_jax.io.weight_file import load_weights
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.pipeline import Pipeline
from genaffect_jax.training.denoiser.pretrained import initial_parameters, place_autoencoder
from genaffect_jax.training.denoiser.task import train_denoiser
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import create_state

# The released position table is of 16 x 16 latents; the fine-tuned model draws smaller images with its centre.
RELEASED = MMDiTConfig(
    sample_size=16,
    in_channels=4,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=12,
    pooled_projection_dim=8,
    pos_embed_max_size=12,
    dual_attention_layers=(0,),
    register_tokens=0,
)
AUTOENCODER = AutoencoderConfig(latent_channels=4, block_out_channels=(8, 8, 16), norm_num_groups=4, scaling_factor=1.5)


def random_parameters(network: Functional, seed: int) -> dict[str, jax.Array]:
    """No bias is zero, no norm is one."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.standard_normal(s.shape) * 0.2 + name.endswith("scale"), s.dtype)
        for name, s in network.shapes.items()
    }


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory) -> Path:
    """A transformer and an autoencoder as they lie in a diffusers pipeline."""
    folder = tmp_path_factory.mktemp("released")
    write_transformer(RELEASED, random_parameters(TRANSFORMER.network(RELEASED), 0), folder / "transformer")
    network = build_networks(ModelConfig(mmdit=RELEASED, autoencoder=AUTOENCODER))[1]
    write_autoencoder(AUTOENCODER, random_parameters(network, 1), folder / "vae")
    (folder / "model_index.json").write_text("{}")
    return folder


def model(folder: Path, **changes) -> ModelConfig:
    return ModelConfig(
        mmdit=dataclasses.replace(RELEASED, sample_size=8, scan_layers=False, **changes),
        autoencoder=AUTOENCODER,
        conditioning=ConditioningConfig(expression_tokens=2, identity_layers=1),
        transformer_weights=str(folder),
        autoencoder_weights=str(folder),
    )


@pytest.fixture(scope="module")
def state(pipeline_folder):
    config, mesh = model(pipeline_folder), make_mesh(MeshConfig(fsdp=4))
    denoiser = build_networks(config)[0]
    return create_state(denoiser, make_optimizer(TrainConfig()), mesh, 0, initial_parameters(config, mesh))


def test_parameters_and_average_start_as_the_released_weights_and_lie_cut_over_the_devices(state, pipeline_folder):
    released = read_transformer(pipeline_folder)[1]
    for name, value in released.items():
        for found in ({**state.parameters, **state.frozen_params}, state.averaged):
            np.testing.assert_array_equal(found[f"mmdit.{name}"], value)
    kernel = state.parameters["mmdit.segments.0.layers.image_mlp.up.kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_branch_keys_are_copies_of_the_released_queries_and_branch_values_are_zero(state):
    layers = 0
    for segment in range(2):
        prefix = f"mmdit.segments.{segment}.layers"
        queries = state.parameters[f"{prefix}.image_qkv.query.kernel"]
        layers += len(queries)
        for branch in ("identity", "expression"):
            np.testing.assert_array_equal(state.parameters[f"{prefix}.{branch}.key.kernel"], queries)
            assert not np.any(state.parameters[f"{prefix}.{branch}.value.kernel"])
    assert layers == RELEASED.num_layers


def test_the_first_forward_is_the_released_models(state, pipeline_folder):
    config = model(pipeline_folder)
    rng = np.random.default_rng(2)
    latents, reference = (rng.standard_normal((1, n, 8, 8, 4), np.float32) for n in (2, 1))
    text, pooled = rng.standard_normal((1, 2, 5, 12), np.float32), rng.standard_normal((1, 2, 8), np.float32)
    expression, sigma = rng.random((1, 2, 40), np.float32), np.full((1, 2), 0.7, np.float32)
    denoiser, released = build_networks(config)[0], TRANSFORMER.network(RELEASED)

    @jax.jit
    def both(generator_parameters, released_parameters):
        fine_tuned, plain = denoiser.merge(generator_parameters), released.merge(released_parameters)
        conditions = fine_tuned.encode_conditions(
            reference, jnp.ones((1, 1), bool), expression, text=text, pooled=pooled
        )
        return (
            fine_tuned(latents, sigma, conditions).prediction,
            plain(latents, sigma, plain.project_conditions(text=text, pooled=pooled)).prediction,
        )

    found, expected = both(jax.device_get(state.averaged), jax.device_get(read_transformer(pipeline_folder)[1]))
    assert float(jnp.std(expected)) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-6 * float(jnp.abs(expected).max()))


def test_weights_of_another_network_are_refused_with_every_difference(pipeline_folder):
    config = model(pipeline_folder, num_layers=1, dual_attention_layers=())
    with pytest.raises(WeightsError, match="weights of another network") as error:
        initial_parameters(config, make_mesh(MeshConfig()))
    assert "num_layers is 2 there, model.mmdit.num_layers=1" in str(error.value)
    assert "dual_attention_layers is (0,) there, model.mmdit.dual_attention_layers=()" in str(error.value)
    assert "sample_size" not in str(error.value)


def test_a_variant_is_read_where_the_settings_name_it_and_is_named_where_they_do_not(pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "released")
    for part in ("transformer", "vae"):
        whole = folder / part / "diffusion_pytorch_model.safetensors"
        whole.rename(whole.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (folder / "model_index.json").unlink()
    mesh, plain = make_mesh(MeshConfig()), model(folder)
    with pytest.raises(WeightsError, match="transformer has weights of the variant fp16 alone") as error:
        initial_parameters(plain, mesh)
    assert error.value.on_command_line.startswith("--model.transformer_variant: ")
    with pytest.raises(WeightsError, match="vae has weights of the variant fp16 alone") as error:
        place_autoencoder(AUTOENCODER, str(folder), tmp_path / "vae.safetensors")
    assert error.value.on_command_line.startswith("--model.autoencoder_variant: ")
    named = dataclasses.replace(plain, transformer_variant="fp16", autoencoder_variant="fp16")
    expected = initial_parameters(model(pipeline_folder), mesh)
    for name, value in initial_parameters(named, mesh).items():
        np.testing.assert_array_equal(value, expected[name])
    place_autoencoder(AUTOENCODER, str(folder), tmp_path / "vae.safetensors", "fp16")
    place_autoencoder(AUTOENCODER, str(pipeline_folder), tmp_path / "plain.safetensors")
    assert (tmp_path / "vae.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    with pytest.raises(WeightsError, match=r"model.autoencoder_variant=fp16: .*: a file has no variants"):
        place_autoencoder(AUTOENCODER, str(tmp_path / "vae.safetensors"), tmp_path / "x.safetensors", "fp16")
    with pytest.raises(ConfigError, match=r"model.transformer_variant=fp16: needs model.transformer_weights"):
        ModelConfig(transformer_variant="fp16")


def test_a_missing_folder_and_a_needless_one_are_named(pipeline_folder, tmp_path):
    with pytest.raises(WeightsError, match="nowhere: no such folder"):
        initial_parameters(model(tmp_path / "nowhere"), make_mesh(MeshConfig()))
    with pytest.raises(ConfigError, match="prediction=x0: must be velocity"):
        dataclasses.replace(model(pipeline_folder), prediction="x0")


def test_given_parameters_that_do_not_fit_are_named(pipeline_folder):
    config, mesh = model(pipeline_folder), make_mesh(MeshConfig())
    given = {"mmdit.out.bias": jnp.zeros(3), "mmdit.nothing": jnp.zeros(1)}
    with pytest.raises(ValueError, match=r"mmdit\.out\.bias float32\[3\], mmdit\.nothing float32\[1\]"):
        create_state(build_networks(config)[0], make_optimizer(TrainConfig()), mesh, 0, given)


@pytest.mark.parametrize("part", ["", "vae"])
def test_an_autoencoder_folder_becomes_a_weight_file_of_this_package(pipeline_folder, tmp_path, part):
    path, source = tmp_path / "autoencoder.safetensors", str(pipeline_folder / part)
    place_autoencoder(AUTOENCODER, source, path)
    network = build_networks(model(pipeline_folder))[1]
    found, expected = load_weights(network, path, AUTOENCODER), random_parameters(network, 1)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(WeightsError, match=r"scaling_factor is 1\.5 there, model\.autoencoder\.scaling_factor=2\.0"):
        place_autoencoder(dataclasses.replace(AUTOENCODER, scaling_factor=2.0), source, path)


def test_a_one_file_checkpoint_gives_the_weights_that_its_folders_give(tmp_path):
    mmdit = dataclasses.replace(RELEASED, sample_size=24)  # what a reader infers from the position table
    decoder = dataclasses.replace(AutoencoderConfig.sd3(), block_out_channels=(32, 32), latent_channels=4)
    transformer = random_parameters(TRANSFORMER.network(mmdit), 0)
    autoencoder = build_networks(ModelConfig(mmdit=mmdit, autoencoder=decoder))[1]
    expected = random_parameters(autoencoder, 1)
    file, path = tmp_path / "sd3.safetensors", tmp_path / "autoencoder.safetensors"
    write_single_file(file, (mmdit, transformer), (decoder, expected), dtype="float32", metadata={})
    config = dataclasses.replace(model(file), autoencoder=decoder)
    found = initial_parameters(config, make_mesh(MeshConfig()))
    for name, value in transformer.items():
        np.testing.assert_array_equal(found[f"mmdit.{name}"], value)
    place_autoencoder(decoder, str(file), path)
    for name, value in load_weights(autoencoder, path, decoder).items():
        np.testing.assert_array_equal(value, expected[name])
    with pytest.raises(WeightsError, match=r"num_layers is 2 there, model\.mmdit\.num_layers=3"):
        initial_parameters(model(file, num_layers=3), make_mesh(MeshConfig()))

    # A weight file of this package is an autoencoder's source as it is, and no transformer's.
    place_autoencoder(decoder, str(path), tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == path.read_bytes()
    with pytest.raises(WeightsError, match="no one-file checkpoint with this network"):
        initial_parameters(model(path), make_mesh(MeshConfig()))
    save_file({"joint_blocks.0.a": np.ones(1, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"neither a weight file of this package .* nor a one-file checkpoint"):
        place_autoencoder(decoder, str(tmp_path / "other.safetensors"), path)
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors: no such file"):
        initial_parameters(model(tmp_path / "nowhere.safetensors"), make_mesh(MeshConfig()))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_fine_tuning_starts_at_the_released_weights_continues_without_their_folder_and_samples(
    pipeline_folder, tmp_path
):
    folder, workdir = tmp_path / "released", tmp_path / "run"
    shutil.copytree(pipeline_folder, folder)
    single = dataclasses.replace(RELEASED, num_layers=1)  # one kind of block compiles in half the time
    write_transformer(single, random_parameters(TRANSFORMER.network(single), 0), folder / "transformer")
    rng, prompts = np.random.default_rng(3), all_prompts(TextConfig())
    tokens, pooled = rng.standard_normal((len(prompts), 5, 12), np.float32), rng.random((len(prompts), 8), np.float32)
    table = tmp_path / "prompts.safetensors"
    PromptTable(prompts, tokens, pooled, TextConfig().template, "random", 77).write(table)
    config = DenoiserRun(
        data=DataConfig(
            image_size=32, identities=6, expressions_per_identity=4, expressions_per_set=2, holdout=0.2, workers=0
        ),
        text=TextConfig(embeddings=table),
        model=model(folder, num_layers=1),
        train=TrainConfig(steps=2, batch_size=8, learning_rate=1e-3, warmup_steps=0, schedule="constant", log_every=1),
    )
    console = Console(file=io.StringIO())
    assert train_denoiser(config, workdir, console)
    released = read_transformer(folder)[1]
    found = Checkpoints(workdir).averaged_parameters(build_networks(config.model)[0], make_mesh(MeshConfig()))
    np.testing.assert_array_equal(found["mmdit.position_table"], released["position_table"])
    moved = jnp.abs(
        found["mmdit.segments.0.layers.image_qkv.query.kernel"] - released["segments.0.layers.image_qkv.query.kernel"]
    )
    assert 0 < float(moved.max()) < 3e-3  # AdamW moves a parameter by about the rate in each step

    shutil.rmtree(folder)
    table.unlink()
    assert train_denoiser(
        dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3)), workdir, console
    )
    avatars = Pipeline.load(workdir)("seed:3", "joy, fear", steps=1)
    assert avatars.images.shape == (2, 32, 32, 3)
    assert (avatars.images[0] != avatars.images[1]).any()
