"""Times the autoencoder: `python benchmarks/autoencoder.py --help`.

Prints wall time and, because other work on the machine does not disturb it, processor time divided by the cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
import tyro

from genaffect_jax.config import AutoencoderConfig, DType
from genaffect_jax.models.autoencoder.model import AutoencoderKL, to_uint8
from genaffect_jax.models.functional import Functional
from genaffect_jax.training.autoencoder.loss import autoencoder_loss


@dataclass(frozen=True)
class Benchmark:
    """What to time."""

    size: int = 128
    """Side of the images, in pixels."""
    batch: int = 16
    """Images in one call."""
    repeats: int = 5
    """Timed calls; the fastest is printed."""
    channels: tuple[int, ...] = AutoencoderConfig.avatar_tiny().block_out_channels
    """Channels at each resolution."""
    layers: int = AutoencoderConfig.avatar_tiny().layers_per_block
    """Residual blocks per resolution."""
    groups: int = AutoencoderConfig.avatar_tiny().norm_num_groups
    """Groups of the group normalisation."""
    dtype: DType = "float32"
    """Type of activations."""
    train: bool = False
    """Also time one training step (loss, gradient, AdamW)."""


def measure(name: str, function: Callable[..., object], *arguments: object, repeats: int, images: int) -> None:
    """Prints the fastest of several calls of a compiled function, in milliseconds per image."""
    jax.block_until_ready(function(*arguments))
    wall, processor = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*arguments))
        wall.append(time.perf_counter() - start[0])
        processor.append((time.process_time() - start[1]) / (os.cpu_count() or 1))
    each = 1e3 / images
    print(f"{name}: {min(wall) * each:.2f} ms an image ({min(processor) * each:.2f} ms of all cores)", flush=True)


def main(options: Benchmark) -> None:
    """Times encoding, decoding and, if asked, a training step of one configuration."""
    config = replace(
        AutoencoderConfig.avatar_tiny(),
        block_out_channels=options.channels,
        layers_per_block=options.layers,
        norm_num_groups=options.groups,
    )
    network = Functional(lambda rngs: AutoencoderKL(config, dtype=jnp.dtype(options.dtype), rngs=rngs))
    parameters = jax.jit(network.init)(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (options.batch, options.size, options.size, 3), minval=-1)
    encode = jax.jit(lambda parameters, x: network.merge(parameters).to_latents(x))
    decode = jax.jit(lambda parameters, z: network.merge(parameters).from_latents(z))
    latents = encode(parameters, images)
    print(
        f"channels {options.channels}, layers {options.layers}, groups {options.groups}, {options.dtype}: "
        f"{network.size / 1e6:.2f} M parameters; {options.batch} images of {options.size} px"
    )
    counts = {"repeats": options.repeats, "images": options.batch}
    measure("encode", encode, parameters, images, **counts)
    measure("decode", decode, parameters, latents, **counts)
    if options.train:
        optimizer = optax.adamw(1e-3)

        @jax.jit
        def step(parameters: dict, moments: optax.OptState, images: jax.Array, key: jax.Array) -> object:
            def loss(parameters: dict) -> jax.Array:
                return autoencoder_loss(network.merge(parameters), images, key, kl_weight=1e-6, edge_weight=1.0)[0]

            gradient = jax.grad(loss)(parameters)
            updates, moments = optimizer.update(gradient, moments, parameters)
            return optax.apply_updates(parameters, updates), moments

        measure(
            "train step", step, parameters, optimizer.init(parameters), to_uint8(images), jax.random.key(2), **counts
        )


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
