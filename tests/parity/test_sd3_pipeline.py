"""A whole StableDiffusion3Pipeline, from prompts to images, is the same computation here and in diffusers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = pytest.mark.torch

from support.tiny_sd3 import tiny_pipeline  # noqa: E402

from genaffect_jax.diffusion.guidance import guided  # noqa: E402
from genaffect_jax.diffusion.sampler import sample  # noqa: E402
from genaffect_jax.diffusion.schedule import euler_sigmas  # noqa: E402
from genaffect_jax.interop.diffusers.pipeline_folder import scheduler_shift  # noqa: E402
from genaffect_jax.interop.diffusers.text_encoders import TextEncoders  # noqa: E402
from genaffect_jax.interop.diffusers.weights import load_autoencoder, load_transformer  # noqa: E402
from genaffect_jax.models.autoencoder.model import to_uint8  # noqa: E402

PROMPTS = ["a portrait of a person, joy expression", "a portrait of a person, anger expression"]
NEGATIVE = "blurry"
STEPS, GUIDANCE, LENGTH = 4, 5.0, 32


@pytest.mark.parametrize("t5", [True, False], ids=["t5", "no_t5"])
def test_latents_and_images_equal_those_of_diffusers(tmp_path, t5):
    theirs = tiny_pipeline(tmp_path, t5)
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4), np.float32)

    def run(output):
        return theirs(
            PROMPTS,
            negative_prompt=[NEGATIVE] * 2,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
            height=16,
            width=16,
            max_sequence_length=LENGTH,
            output_type=output,
        ).images

    expected_latents = run("latent").numpy().transpose(0, 2, 3, 1)
    expected_images = np.stack([np.asarray(image) for image in run("pil")])

    tokens, pooled = TextEncoders(tmp_path, max_sequence_length=LENGTH).encode([NEGATIVE, *PROMPTS])
    # One group of two images; its two branches are groups side by side: without the prompt, with it.
    branches = np.array([[0, 0], [1, 2]])
    sigmas = euler_sigmas(STEPS, scheduler_shift(tmp_path))
    graph, state = nnx.split((load_transformer(tmp_path), load_autoencoder(tmp_path)))

    @jax.jit
    def draw(state, text, pooled, noise):
        transformer, autoencoder = nnx.merge(graph, state)
        conditions = transformer.project_conditions(text=text, pooled=pooled)

        def velocity(latents, sigma, evaluation, memory):
            return transformer(latents, jnp.full(latents.shape[:2], sigma), conditions).prediction, memory

        latents, _ = sample(guided(velocity, "joint", guidance_expression=GUIDANCE), noise, sigmas, STEPS)
        return latents, to_uint8(autoencoder.from_latents(latents))

    latents, found = draw(state, tokens[branches], pooled[branches], noise[None])
    assert np.abs(expected_latents[0] - expected_latents[1]).max() > 1
    error = np.abs(latents[0] - expected_latents).max()
    difference = np.abs(np.asarray(found[0]).astype(int) - expected_images)
    print(f"latents up to {np.abs(expected_latents).max():.1f}: max error {error:.1e}; images: {difference.max()}/255")
    assert error <= 1e-4
    assert expected_images.std() > 20
    assert difference.max() <= 1
