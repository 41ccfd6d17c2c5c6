"""Memory of decoding whole and in tiles, by XLA's own account: `python benchmarks/tiling.py --help`.

Nothing is run: the programs are compiled for shapes alone, so that it needs neither weights nor much memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import tyro

from genaffect_jax.config import AutoencoderConfig, DType
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.autoencoder.tiling import OVERLAP, TILE, decode_tiled, encode_tiled
from genaffect_jax.models.functional import Functional
from genaffect_jax.parallel.xla import CompilerOptions

MIB = 2**20


@dataclass(frozen=True)
class Benchmark:
    """SD3's autoencoder, one image."""

    sizes: tuple[int, ...] = (512, 1024, 2048)
    """Sides of the images, in pixels."""
    tile: int = TILE
    """Side of a tile, in latent pixels."""
    overlap: int = OVERLAP
    """Overlap of tiles, in latent pixels."""
    dtype: DType = "float32"
    """Type of activations."""
    whole: bool = True
    """Also compile the plain programs."""


def main(options: Benchmark) -> None:
    """Prints arguments, result and scratch memory of every program."""
    config = AutoencoderConfig.sd3()
    network = Functional(lambda rngs: AutoencoderKL(config, dtype=jnp.dtype(options.dtype), rngs=rngs))
    tiles = (options.tile, options.overlap)
    programs = {
        "decode tiled": lambda p, x: decode_tiled(network.merge(p), x, *tiles),
        "encode tiled": lambda p, x: encode_tiled(network.merge(p), x, *tiles).mean,
    }
    if options.whole:
        programs["decode"] = lambda p, x: network.merge(p).decode(x)
        programs["encode"] = lambda p, x: network.merge(p).encode(x).mean
    print(f"{jax.default_backend()}, {options.dtype}, tiles of {options.tile} with {options.overlap} in common; MiB")
    for name, program in programs.items():
        for size in options.sizes:
            encodes = name.startswith("encode")
            side, channels = (size, 3) if encodes else (size // config.downsample, config.latent_channels)
            quick: CompilerOptions = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
            lowered = jax.jit(program, compiler_options=quick).lower(
                network.shapes, jax.ShapeDtypeStruct((1, side, side, channels), "float32")
            )
            memory = lowered.compile().memory_analysis()
            assert memory is not None
            print(
                f"{name:13} {size:5} px: scratch {memory.temp_size_in_bytes / MIB:9.1f}, "
                f"result {memory.output_size_in_bytes / MIB:6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
