"""LoRA files both ways: diffusers applies ours as we do, and we apply those of diffusers, PEFT and kohya as they do."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.config import LoraConfig
from genaffect_jax.export.lora import export_lora
from genaffect_jax.interop.diffusers.components import TRANSFORMER
from genaffect_jax.interop.diffusers.lora import add_loras, read_lora
from genaffect_jax.interop.diffusers.weights import read_transformer, save_transformer
from genaffect_jax.models.build import build_networks

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402 (needs torch)
from support import diffusers_models, original_layout  # noqa: E402 (needs torch)
from support.sd3_runs import run_config, save_run  # noqa: E402

pytestmark = pytest.mark.torch

NAMES = ("sd3", "dual_last")
TARGETS = ["attn.to_q", "attn.add_v_proj", "attn.to_out.0", "attn2.to_k", "ff.net.2", "norm1_context.linear"]
TARGETS += ["norm_out.linear", "proj_out", "pos_embed.proj", "context_embedder"]


@pytest.fixture(params=NAMES)
def base(request: pytest.FixtureRequest, tmp_path: Path):
    """A model of diffusers and the same of ours: configuration and parameters."""
    model = diffusers_models.randomised(diffusers_models.transformer(diffusers_models.TRANSFORMERS[request.param]))
    model.save_pretrained(tmp_path / "base")
    return model, *read_transformer(tmp_path / "base")


def inputs(config) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((1, 2, 8, 6, config.in_channels), np.float32),
        np.array([[0.1, 0.9]], np.float32),
        rng.standard_normal((1, 2, 3, config.joint_attention_dim), np.float32),
        rng.standard_normal((1, 2, config.pooled_projection_dim), np.float32),
    )


def their_output(model) -> np.ndarray:
    latents, sigma, text, pooled = (torch.from_numpy(x).flatten(0, 1) for x in inputs(model.config))
    with torch.no_grad():
        velocity = model(
            hidden_states=latents.permute(0, 3, 1, 2),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=sigma * 1000,
        ).sample
    return velocity.permute(0, 2, 3, 1).numpy()


@lru_cache
def forward(config):
    """The compiled network, as compiling is most of the time here."""
    network = TRANSFORMER.network(config)

    def run(parameters, latents, sigma, text, pooled):
        model = network.merge(parameters)
        return model(latents, sigma, model.project_conditions(text=text, pooled=pooled)).prediction[0]

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def our_output(config, parameters) -> np.ndarray:
    return np.asarray(forward(config)(parameters, *inputs(config)))


def with_lora(parameters, path: Path, weight: float, config):
    """The transformer's parameters with a file added; its names are the denoiser's without prefix."""
    named = {f"mmdit.{name}": value for name, value in parameters.items()}
    return {n.removeprefix("mmdit."): p for n, p in add_loras(named, [read_lora(path, weight, config)]).items()}


def assert_close(found: np.ndarray, expected: np.ndarray, plain: np.ndarray) -> None:
    """Equal to rounding, and far from what the base gives."""
    scale = np.abs(expected).max()
    assert np.abs(expected - plain).max() > 0.02 * scale
    np.testing.assert_allclose(found, expected, atol=3e-5 * scale)


def test_diffusers_applies_our_exported_file_as_our_network_applies_the_additions(tmp_path: Path) -> None:
    targets = (
        "mmdit.segments.*qkv.*.kernel",
        "mmdit.segments.*out.kernel",
        "mmdit.patch_embed.kernel",
        "mmdit.out.kernel",
        "mmdit.segments.*text_modulation.linear.kernel",
    )
    config = run_config(LoraConfig(rank=2, alpha=3.0, targets=targets))
    parameters = save_run(tmp_path / "run", config)
    network = build_networks(config.model)[0]
    mmdit = config.model.mmdit
    names = TRANSFORMER.network(mmdit).shapes
    base, merged = ({name: p[f"mmdit.{name}"] for name in names} for p in (parameters, network.plain(parameters)))
    file = tmp_path / "lora.safetensors"
    export_lora(tmp_path / "run", file)
    save_transformer(TRANSFORMER.network(mmdit).merge(base), tmp_path / "base")
    model = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "base").eval()
    plain = their_output(model)
    expected = our_output(mmdit, merged)

    class TinyPipeline(diffusers.loaders.SD3LoraLoaderMixin):
        """What `load_lora_weights` needs of a StableDiffusion3Pipeline."""

        transformer, text_encoder, text_encoder_2, components, hf_device_map = model, None, None, {}, None

    TinyPipeline().load_lora_weights(str(tmp_path), weight_name=file.name, local_files_only=True)
    assert_close(their_output(model), expected, plain)
    # As our own reader applies it.
    assert_close(our_output(mmdit, with_lora(base, file, 1.0, mmdit)), expected, plain)
    # Readers that know no configuration take alpha = rank.
    model.delete_adapters("default_0")
    np.testing.assert_allclose(their_output(model), plain, atol=1e-6)
    model.load_lora_adapter(load_file(file), adapter_name="bare")
    assert_close(their_output(model), expected, plain)


@pytest.mark.parametrize("patterns", [False, True], ids=["one rank", "patterns"])
def test_a_file_of_diffusers_gives_the_output_that_diffusers_gives(base, patterns: bool, tmp_path: Path) -> None:
    model, config, parameters = base
    more = {"rank_pattern": {"attn.to_q": 5}, "alpha_pattern": {"to_q": 2, "proj_out": 7}} if patterns else {}
    lora = peft.LoraConfig(r=3, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False, **more)
    plain = their_output(model)
    torch.manual_seed(0)
    model.add_adapter(lora)
    metadata = diffusers.training_utils._collate_lora_metadata({"transformer": model})
    diffusers.StableDiffusion3Pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=peft.utils.get_peft_model_state_dict(model),
        weight_name="theirs.safetensors",
        **metadata,
    )
    found = our_output(config, with_lora(parameters, tmp_path / "theirs.safetensors", 1.0, config))
    assert_close(found, their_output(model), plain)
    model.set_adapters("default", 0.5)
    found = our_output(config, with_lora(parameters, tmp_path / "theirs.safetensors", 0.5, config))
    assert_close(found, their_output(model), plain)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_that_peft_saved_gives_the_output_that_peft_gives(rslora: bool, tmp_path: Path) -> None:
    model = diffusers_models.randomised(diffusers_models.transformer(diffusers_models.TRANSFORMERS["sd35_medium"]))
    model.save_pretrained(tmp_path / "base")
    config, parameters = read_transformer(tmp_path / "base")
    plain = their_output(model)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=3, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False, use_rslora=rslora)
    wrapped = peft.get_peft_model(model, lora)
    wrapped.save_pretrained(tmp_path / "peft")
    found = our_output(config, with_lora(parameters, tmp_path / "peft" / "adapter_model.safetensors", 1.0, config))
    assert_close(found, their_output(model), plain)


def test_a_file_of_kohya_gives_the_output_of_the_original_tensors_with_its_products(base, tmp_path: Path) -> None:
    model, config, parameters = base
    plain = their_output(model)
    tensors = original_layout.transformer(model)
    generator = torch.Generator().manual_seed(0)
    file, merged = {}, {}
    for key, weight in tensors.items():
        if not key.endswith(".weight") or weight.ndim < 2:
            merged[key] = weight
            continue
        down = torch.randn(2, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        up = 0.2 * torch.randn(len(weight), 2, generator=generator)
        module = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
        file[f"{module}.lora_down.weight"] = down
        file[f"{module}.lora_up.weight"] = up[:, :, None, None] if weight.ndim == 4 else up
        file[f"{module}.alpha"] = torch.tensor(1.5)
        merged[key] = weight + 0.7 * 1.5 / 2 * (up @ down.flatten(1)).reshape(weight.shape)
    save_file(file, tmp_path / "kohya.safetensors")
    converted = diffusers.loaders.single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(merged)
    model.load_state_dict(converted)
    found = our_output(config, with_lora(parameters, tmp_path / "kohya.safetensors", 0.7, config))
    assert_close(found, their_output(model), plain)


def test_half_precision_kernels_keep_small_additions_until_they_are_rounded(base, tmp_path: Path) -> None:
    model, config, parameters = base
    key = "transformer.transformer_blocks.1.attn.to_q"
    weight = model.transformer_blocks[1].attn.to_q.weight
    down, up = torch.ones(1, weight.shape[1]), torch.full((weight.shape[0], 1), 3e-4)
    save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, tmp_path / "small.safetensors")
    found = with_lora(parameters, tmp_path / "small.safetensors", 1.0, config)
    place = next(p for p in TRANSFORMER.pieces(config).values() if p.key.endswith("blocks.1.attn.to_q.weight"))
    rounded = found[place.parameter].astype(jnp.bfloat16)[place.layer]
    expected = (weight + up @ down).detach().to(torch.bfloat16).float().numpy().T
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), expected)
