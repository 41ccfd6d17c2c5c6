"""Time of one denoiser forward at full size with random weights: `python benchmarks/denoiser.py --help`.

SD3.5-medium, bfloat16, 8 expressions with guidance (a batch of 16 images), 333 text tokens: 77 of CLIP and 256 of T5.
The weights are random numbers, not the zeros of a new model: products of zeros run faster than those of real numbers.
`--branch_tokens 16 --consistency 0.5` adds both decoupled branches and lets the images of each guidance branch share
half of their image tokens.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from genaffect_jax.config import ConditionAttention, MMDiTConfig
from genaffect_jax.models.flops import forward_flops
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.mmdit.consistent_attention import Sharing, random_tokens
from genaffect_jax.models.mmdit.model import MMDiT
from genaffect_jax.models.mmdit.score_bound import LARGEST_SCORE, score_bound
from genaffect_jax.parallel.xla import compiler_options

MODELS = {
    "sd3_medium": MMDiTConfig.sd3_medium,
    "sd35_medium": MMDiTConfig.sd35_medium,
    "sd35_large": MMDiTConfig.sd35_large,
}
MATMUL_SIDE = 8192
DRAWN = 1 << 22
LATENT_PIXEL = 8
QUEUED = 3


def random_parameters(network: Functional[Any]) -> Parameters:
    """Bfloat16 parameters of the size that trained ones have: matrices keep the scale of what they multiply.

    They repeat four million random numbers, from another place for each parameter: a program that draws all of them
    would take a minute to compile.
    """
    noise = np.random.default_rng(0).standard_normal(DRAWN, np.float32)

    def value(place: int, name: str, shape: tuple[int, ...]) -> jax.Array:
        drawn = np.roll(noise, place)
        if name.endswith("kernel"):
            drawn = drawn * shape[-2] ** -0.5
        else:
            drawn = 1 + 0.1 * drawn if name.endswith("scale") else 0.1 * drawn
        return jnp.asarray(np.resize(drawn.astype(jnp.bfloat16), shape))

    places = np.random.default_rng(1).integers(DRAWN, size=len(network.shapes))
    return {
        name: value(int(place), name, shape.shape)
        for place, (name, shape) in zip(places, network.shapes.items(), strict=True)
    }


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call, after three that are not counted.

    Three calls are queued at a time, as the steps of a sampler are: the device then never waits for the host, and the
    figure compares with one taken between two events on the device.
    """
    jax.block_until_ready([call() for _ in range(QUEUED)])
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready([call() for _ in range(QUEUED)])
        times.append((time.perf_counter() - start) * 1e3 / QUEUED)
    return median(times)


def matmul_tflops(repeats: int) -> float:
    """Rate of one large bfloat16 matrix product of random numbers: the peak that shares are quoted of."""
    a, b = (jax.random.normal(jax.random.key(i), (MATMUL_SIDE, MATMUL_SIDE), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.dot)
    return 2 * MATMUL_SIDE**3 / milliseconds(lambda: product(a, b), repeats) / 1e9


def main(
    model: str = "sd35_medium",
    sizes: tuple[int, ...] = (512, 1024),
    batch: int = 16,
    text_tokens: int = 333,
    repeats: int = 10,
    layers: int = 0,
    branch_tokens: int = 0,
    consistency: float = 0.0,
    max_free: bool = True,
    scan: bool = True,
) -> None:
    """Times the denoiser.

    Args:
        model: sd3_medium, sd35_medium or sd35_large.
        sizes: sides of the images, in pixels.
        batch: images in one forward, an even number: two guidance branches.
        text_tokens: text tokens of each image.
        repeats: timed forwards, after three that are not counted.
        layers: run only this many blocks, for a first try on a small machine; 0 runs all.
        branch_tokens: identity tokens, and as many expression tokens; 0: a model without decoupled branches.
        consistency: share of its image tokens that every image shows the others of its guidance branch.
        max_free: use the kernel for scores of known bound where there is one, as the sampler does.
        scan: equal blocks as a loop, or unrolled.
    """
    config = dataclasses.replace(MODELS[model](), scan_layers=scan)
    if layers:
        dual = tuple(i for i in config.dual_attention_layers if i < layers)
        config = dataclasses.replace(config, num_layers=layers, dual_attention_layers=dual)
    branches: ConditionAttention | None = "decoupled" if branch_tokens else None

    def make(max_free: bool) -> Functional[MMDiT]:
        return Functional(
            lambda rngs: MMDiT(config, branches=branches, rngs=rngs, dtype=jnp.bfloat16, max_free=max_free)
        )

    @partial(jax.jit, compiler_options=compiler_options())
    def forward(parameters: Parameters, latents: Any, sigma: Any, key: Any, conditions: dict[str, Any]) -> jax.Array:
        denoiser = network.merge(parameters)
        length = (latents.shape[2] // config.patch_size) ** 2
        shared, sharing = round(consistency * length), None
        if shared:
            tokens = random_tokens(key, config.num_layers, length, shared)
            sharing = Sharing(tokens, anchors=latents.shape[1])
        return denoiser(latents, sigma, denoiser.project_conditions(**conditions), sharing=sharing).prediction

    peak = matmul_tflops(repeats)
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "matmul_tflops": round(peak, 1)}), flush=True)
    parameters = random_parameters(make(False))
    network = make(max_free and score_bound(parameters) <= LARGEST_SCORE)
    keys = iter(jax.random.split(jax.random.key(1), 4 + len(sizes)))
    shapes: dict[str, tuple[int, ...]] = {
        "text": (2, batch // 2, text_tokens, config.joint_attention_dim),
        "pooled": (2, batch // 2, config.pooled_projection_dim),
    }
    if branches:
        shapes["identity_tokens"] = (2, branch_tokens, config.width)
        shapes["expression_tokens"] = (2, batch // 2, branch_tokens, config.width)
    conditions = {name: jax.random.normal(next(keys), shape, jnp.bfloat16) for name, shape in shapes.items()}
    sigma = jnp.full((2, batch // 2), 0.5)
    for size in sizes:
        side = size // LATENT_PIXEL
        latents = jax.random.normal(next(keys), (2, batch // 2, side, side, config.in_channels))
        arguments = (parameters, latents, sigma, jax.random.key(2), conditions)
        start = time.perf_counter()
        compiled = forward.lower(*arguments).compile()
        compilation = time.perf_counter() - start
        if not bool(jnp.isfinite(compiled(*arguments)).all()):
            raise SystemExit(f"{model} at {size} px: the result is not finite")
        spent = milliseconds(lambda: compiled(*arguments), repeats)  # noqa: B023 (used at once)
        shared = round(consistency * (side // config.patch_size) ** 2)
        flops = forward_flops(
            config,
            batch,
            side,
            text_tokens,
            identity_tokens=branch_tokens,
            expression_tokens=branch_tokens,
            others=(batch // 2 - 1) * shared,
        ).total
        rate = flops / spent / 1e9
        memory = compiled.memory_analysis()
        assert memory is not None
        row = {
            "model": model,
            "pixels": size,
            "batch": batch,
            "branch_tokens": branch_tokens,
            "consistency": consistency,
            "max_free": max_free,
            "milliseconds": round(spent, 2),
            "tflops": round(rate, 1),
            "share_of_matmul_peak": round(rate / peak, 3),
            "floor_milliseconds": round(flops / peak / 1e9, 1),
            "temporary_gib": round(memory.temp_size_in_bytes / 2**30, 2),
            "compile_seconds": round(compilation, 1),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
