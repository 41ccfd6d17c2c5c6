"""Parity evidence: what this package computes with the exported weights, for `check.py` to compare with PyTorch.

Everything is computed in float32 with the weights as they are stored, so that the comparison does not depend on their
type. Besides latents and images the evidence holds what the networks compute on the way, so that a difference shows
where it begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.config import SamplingConfig
from genaffect_jax.data.prompts.table import prompt_for
from genaffect_jax.diffusion.guidance import repeat_branches
from genaffect_jax.diffusion.sampler import initial_noise
from genaffect_jax.errors import DataError, ExpressionError
from genaffect_jax.export.trained import TrainedModel
from genaffect_jax.expressions.action_units import INDEX, neutral
from genaffect_jax.expressions.grammar import Expression, parse_expressions
from genaffect_jax.inference.program import SamplerSpec, SetInputs, denoise_set, encode_set, tokens_at
from genaffect_jax.inference.settings import resolve_settings
from genaffect_jax.models.autoencoder.model import normalise, to_uint8
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Parameters
from genaffect_jax.models.prompts import Prompts
from genaffect_jax.pipeline import DEFAULT_ANCHORS, noise_ids_of

Tensors = dict[str, np.ndarray]

LATENT_TOLERANCE = 1e-4
"""Largest difference of latents, which are of order one."""
FEATURE_TOLERANCE = 1e-4
"""Largest difference of other numbers, relative to the largest of their tensor."""
PIXEL_SHARE = 0.999
"""Share of the bytes of images that differ by at most 1."""
_SEED = 1000042  # of the procedural avatar that is the person of every case
# The first request of which a model has all vectors and prompts. Models of encoder vectors know no action units.
_REQUESTS = ("joy, 0.5*fear + 0.5*surprise, AU4=0.8,AU12L=0.7", "joy, anger:0.6, sadness", "neutral, neutral, neutral")


@dataclass(frozen=True)
class Case:
    """One set that both implementations sample."""

    name: str
    references: int
    """Images of the person."""
    settings: SamplingConfig


CASES = (
    Case("guided", 1, SamplingConfig(steps=4, seed=3, guidance_identity=1.5, guidance_expression=2.0)),
    Case(
        "consistent",
        2,
        SamplingConfig(
            steps=4,
            seed=5,
            guidance=2.0,
            identity_scale=(0.5,),
            expression_scale=(1.5,),
            consistency=0.5,
            anchors=2,
            chunk=1,
        ),
    ),
)


def pipeline_settings(settings: SamplingConfig) -> dict[str, Any]:
    """The same settings as arguments of the exported pipeline."""
    return {
        "seed": settings.seed,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "guidance_identity": settings.guidance_identity,
        "guidance_expression": settings.guidance_expression,
        "identity_scale": _plain(settings.identity_scale),
        "expression_scale": _plain(settings.expression_scale),
        "consistency": settings.consistency,
        "anchors": settings.anchors or DEFAULT_ANCHORS,
        "chunk": settings.chunk,
    }


def collect(model: TrainedModel, cases: Sequence[Case] = CASES) -> tuple[dict[str, Any], Tensors]:
    """The evidence of a model whose parameters are the exported ones, as float32.

    Returns:
        The content of `parity.json`, and the tensors of `parity.safetensors`: for every case, in PyTorch's axis order,
        `<case>.reference`, `.noise`, `.tokens`, `.vectors`, `.reference_latents`, `.face`, `.keys_and_values` and
        `.blocks` (means over images and tokens, by block; the latter only without sharing), `.latents`, `.images`.
    """
    text, expressions = _request(model)
    records: list[dict[str, Any]] = []
    tensors: Tensors = {}
    for case in cases:
        # Matrix products of GPUs and TPUs round float32 factors otherwise.
        with jax.default_matmul_precision("highest"):
            found = _sample(model, case, expressions)
        tensors |= {f"{case.name}.{name}": value for name, value in found.items()}
        records.append({"name": case.name, "expressions": text, "settings": pipeline_settings(case.settings)})
    tolerances = {"latents": LATENT_TOLERANCE, "features": FEATURE_TOLERANCE, "pixel_share": PIXEL_SHARE}
    return {"cases": records, "tolerances": tolerances}, tensors


def _sample(model: TrainedModel, case: Case, expressions: Sequence[Expression]) -> Tensors:
    config, settings = model.config, case.settings
    spec, params = resolve_settings(config.model, config.flow.shift, settings)
    spec = dataclasses.replace(spec, anchors=(settings.anchors or 0) if spec.shared else 0)
    # The person faces the camera in the first reference and turns the head further in each other.
    faces = [neutral() for _ in range(case.references)]
    for number, face in enumerate(faces):
        face[INDEX["head_yaw"]] = min(1.0, 0.3 * number)
    references = np.stack([render(sample_identity(_SEED), face, config.model.image_size) for face in faces])
    prompt = None
    frozen: dict[str, Any] = {"autoencoder": model.autoencoder}
    if model.prompts is not None:
        prompt = jnp.asarray(model.prompts.rows([prompt_for(e, config.text) for e in expressions]))[None]
        frozen["prompts"] = Prompts.of(model.prompts, config.text.negative)
    identity = model.faces.identity
    if identity is not None:
        frozen["identity_encoder"] = identity.parameters
    inputs = SetInputs(
        jnp.asarray(references)[None],
        jnp.ones((1, case.references), bool),
        jnp.asarray(np.stack([e.vector for e in expressions]))[None],
        jnp.asarray(noise_ids_of(expressions))[None],
        prompt,
    )
    denoiser, autoencoder = build_networks(config.model)

    @jax.jit
    def run(parameters: Parameters, frozen: Mapping[str, Any], inputs: SetInputs) -> dict[str, jax.Array]:
        network, vae = denoiser.merge(parameters), autoencoder.merge(frozen["autoencoder"])
        encoder = None if identity is None else identity.network
        conditions = encode_set(network, vae, encoder, frozen, inputs, spec.mode)
        latents, _ = denoise_set(config.model, network, params, spec, None, inputs.noise_ids, conditions)
        side, channels = config.model.mmdit.sample_size, config.model.mmdit.in_channels
        noise = initial_noise(params.seed, inputs.noise_ids, (side, side, channels))
        first = repeat_branches(noise, spec.mode)
        pairs = (*conditions.identity, *conditions.expression)  # type: ignore[misc]  # both are there
        pixels = normalise(inputs.reference)
        found = {
            "reference_latents": vae.to_latents(pixels)[0],
            "noise": noise[0],
            "keys_and_values": jnp.stack([_mean(x.reshape(len(x), -1, *x.shape[-2:])) for x in pairs], axis=1),
            "latents": latents[0],
            "images": to_uint8(vae.from_latents(latents))[0],
        }
        if not spec.shares and settings.identity_scale == settings.expression_scale == (1.0,):
            blocks = network.mmdit.block_outputs(first, jnp.full(first.shape[:2], params.sigmas[0]), conditions)
            found["blocks"] = jnp.stack([jnp.mean(image, axis=(0, 1, 2)) for image, _ in blocks])
        if encoder is not None:
            found["face"] = encoder.merge(frozen["identity_encoder"])(pixels)[0]
        return found

    found = {name: np.asarray(value) for name, value in run(model.denoiser, frozen, inputs).items()}
    for name in ("reference_latents", "noise", "latents"):
        found[name] = np.moveaxis(found[name], -1, 1)
    if spec.shares:
        found["tokens"] = _token_order(model, params, spec, settings.steps)
    return {**found, "reference": references, "vectors": np.stack([e.vector for e in expressions])}


def _token_order(model: TrainedModel, params: Any, spec: SamplerSpec, steps: int) -> np.ndarray:
    """Image tokens of every evaluation and block, the shared ones first: [steps, layers, L]."""
    rows = [tokens_at(model.config.model, params, spec, jnp.int32(i)) for i in range(steps)]
    return np.stack([np.concatenate(row, axis=1) for row in rows])


def _mean(x: jax.Array) -> jax.Array:
    """Mean of [layers, tokens, N, H] over tokens, heads joined."""
    return jnp.mean(x, axis=1).reshape(len(x), -1)


def _request(model: TrainedModel) -> tuple[str, list[Expression]]:
    for text in _REQUESTS:
        try:
            expressions = parse_expressions(text, model.space)
            if model.prompts is not None:
                model.prompts.rows([prompt_for(e, model.config.text) for e in expressions])
        except (ExpressionError, DataError) as e:
            reason = e
        else:
            return text, expressions
    raise reason


def _plain(scale: tuple[float, ...]) -> float | list[float]:
    return scale[0] if len(scale) == 1 else list(scale)
