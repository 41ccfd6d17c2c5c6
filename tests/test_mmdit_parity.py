"""The denoiser without branches is diffusers' SD3Transformer2DModel, number for number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genaffect_jax.config import MMDiTConfig
from genaffect_jax.diffusion.schedule import euler_sigmas
from genaffect_jax.models.layers import sincos_table
from genaffect_jax.models.mmdit import MMDiT

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.torch

SMALL = MMDiTConfig(
    sample_size=8, num_layers=4, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24,
    caption_projection_dim=32, pooled_projection_dim=20, in_channels=4, out_channels=4, pos_embed_max_size=7,
    register_tokens=0,
)  # fmt: skip
CONFIGS = {
    "sd3": dataclasses.replace(SMALL, qk_norm="none"),
    "sd35_large": SMALL,
    "sd35_medium": dataclasses.replace(SMALL, dual_attention_layers=(0, 1)),
    "dual_last": dataclasses.replace(
        SMALL, dual_attention_layers=(3,), num_attention_heads=3, caption_projection_dim=48
    ),
}
MODEL_KEYS = {
    "patch_embed": "pos_embed.proj",
    "position_table": "pos_embed.pos_embed",
    "timestep_embedder.up": "time_text_embed.timestep_embedder.linear_1",
    "timestep_embedder.down": "time_text_embed.timestep_embedder.linear_2",
    "pooled_embedder.up": "time_text_embed.text_embedder.linear_1",
    "pooled_embedder.down": "time_text_embed.text_embedder.linear_2",
    "text_embed": "context_embedder",
    "out_modulation.linear": "norm_out.linear",
    "out": "proj_out",
}
BLOCK_KEYS = {
    "image_modulation.linear": "norm1.linear",
    "text_modulation.linear": "norm1_context.linear",
    "image_out": "attn.to_out.0",
    "text_out": "attn.to_add_out",
    "image_attention.out": "attn2.to_out.0",
    "image_mlp.up": "ff.net.0.proj",
    "image_mlp.down": "ff.net.2",
    "text_mlp.up": "ff_context.net.0.proj",
    "text_mlp.down": "ff_context.net.2",
}
for ours, theirs, added in (
    ("image_qkv", "attn", ""),
    ("text_qkv", "attn", "add"),
    ("image_attention.qkv", "attn2", ""),
):
    for word, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        BLOCK_KEYS[f"{ours}.{word}"] = f"{theirs}.add_{letter}_proj" if added else f"{theirs}.to_{letter}"
        BLOCK_KEYS[f"{ours}.{word}_norm"] = f"{theirs}.norm_{'added_' if added else ''}{letter}"


def copy_weights(model: MMDiT, state: dict) -> None:
    """Fills the model from a diffusers state dict; every key must be used exactly once."""
    left = {key: value.float().numpy() for key, value in state.items()}

    def take(key: str, kind: str) -> np.ndarray:
        if kind == "kernel" and key.startswith("pos_embed.proj"):
            kernel = left.pop(f"{key}.weight")
            return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])
        value = left.pop(f"{key}.bias" if kind == "bias" else f"{key}.weight")
        return value.T if kind == "kernel" else value

    starts = np.cumsum([0] + [segment.length for segment in model.segments])
    for path, variable in nnx.iter_graph(model):
        if not isinstance(variable, nnx.Variable):
            continue
        if path == ("position_table",):
            value = left.pop("pos_embed.pos_embed").reshape(variable.shape)
        elif path[0] == "segments":
            name = BLOCK_KEYS[".".join(path[3:-1])]
            layers = range(starts[path[1]], starts[path[1] + 1])
            value = np.stack([take(f"transformer_blocks.{i}.{name}", path[-1]) for i in layers])
        else:
            value = take(MODEL_KEYS[".".join(path[:-1])], path[-1])
        assert value.shape == variable.shape, path
        variable.set_value(jnp.asarray(value))
    assert not left, sorted(left)


def reference(config: MMDiTConfig):
    torch.manual_seed(0)
    fields = dataclasses.asdict(config)
    for ours in ("register_tokens", "scan_layers", "remat"):
        del fields[ours]
    fields["qk_norm"] = None if config.qk_norm == "none" else config.qk_norm
    model = diffusers.SD3Transformer2DModel(**fields).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Nothing stays at a zero or a one where a forgotten bias or norm would not show.
            around = 1.0 if "norm_" in name and parameter.ndim == 1 and "linear" not in name else 0.0
            spread = 0.3 if parameter.ndim == 1 else 1.0 / np.sqrt(parameter[0].numel())
            parameter.copy_(around + spread * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_equals_diffusers(name: str, scan: bool) -> None:
    config = dataclasses.replace(CONFIGS[name], scan_layers=scan)
    theirs = reference(config)
    ours = nnx.eval_shape(lambda: MMDiT(config, branches=False, rngs=nnx.Rngs(0)))
    copy_weights(ours, theirs.state_dict())
    graph, state = nnx.split(ours)

    def run(state, latents, sigma, text, pooled):
        model = nnx.merge(graph, state)
        return model(latents, sigma, model.project_conditions(text=text, pooled=pooled))

    # Compiling is most of the time here.
    forward = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})

    rng = np.random.default_rng(1)
    # Non-square with an odd number of tokens; odd in latent pixels (the remainder is dropped).
    for height, width in ((14, 6), (9, 13)) if scan else ((8, 10),):
        latents = rng.standard_normal((2, 3, height, width, config.in_channels), np.float32)
        text = rng.standard_normal((2, 3, 5, config.joint_attention_dim), np.float32)
        pooled = rng.standard_normal((2, 3, config.pooled_projection_dim), np.float32)
        sigma = np.linspace(0.001, 1.0, 6, dtype=np.float32).reshape(2, 3)
        with torch.no_grad():
            expected = theirs(
                hidden_states=torch.from_numpy(latents.reshape(6, *latents.shape[2:])).permute(0, 3, 1, 2),
                encoder_hidden_states=torch.from_numpy(text.reshape(6, *text.shape[2:])),
                pooled_projections=torch.from_numpy(pooled.reshape(6, -1)),
                timestep=torch.from_numpy(sigma.reshape(6) * np.float32(1000)),
            ).sample.permute(0, 2, 3, 1)
        found = np.asarray(forward(state, latents, sigma, text, pooled))
        expected = expected.numpy().reshape(found.shape)
        assert np.abs(expected).max() > 0.1
        error = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"{name} {height}x{width}: max relative error {error:.1e}")
        assert error <= 2e-5, f"{height}x{width}: {error:.2e}"


def test_position_table_equals_diffusers() -> None:
    for side, base in ((192, 64), (384, 64), (32, 8), (8, 8)):
        expected = (
            diffusers.models.embeddings.get_2d_sincos_pos_embed(16, side, base_size=base, output_type="pt")
            .float()
            .numpy()
        )
        np.testing.assert_allclose(sincos_table(side, 16, base).reshape(-1, 16), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 4, 28, 50])
def test_sigmas_equal_diffusers(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(euler_sigmas(steps, shift), scheduler.sigmas.numpy(), rtol=0, atol=2e-7)
