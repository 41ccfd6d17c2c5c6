"""Compiler settings of the training step and the sampler, for the kind of device they are compiled for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

import jax

CompilerOptions = dict[str, bool | int | str]
Platform = Literal["cpu", "gpu", "tpu"]
_target: ContextVar[Platform | None] = ContextVar("target", default=None)


def platform() -> str:
    """What programs are compiled for: this process's devices, or the target of `compiling_for`."""
    return _target.get() or jax.default_backend()


def is_hopper() -> bool:
    """Whether programs are compiled for this process's NVIDIA GPUs, and those are of the Hopper generation."""
    return platform() == "gpu" and getattr(jax.local_devices()[0], "compute_capability", "") == "9.0"


@contextmanager
def compiling_for(target: Platform) -> Iterator[None]:
    """Programs traced inside are for another platform than this process's (ahead-of-time compilation)."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def compiler_options(devices: int = 1) -> CompilerOptions:
    """Options for `jax.jit(..., compiler_options=...)` of a program for so many devices.

    On GPUs matrix products go straight to cuBLAS: XLA's own (Triton) products are tried first otherwise, and where they
    lose, the bias and GELU after a product stay passes of their own instead of part of it. Measured in
    docs/notes/sampling_speed.md#the-denoiser-on-one-gpu. Several of them send each other parameters and gradients while
    they compute.
    """
    if platform() != "gpu":
        return {}
    return {"xla_gpu_enable_triton_gemm": False, "xla_gpu_enable_latency_hiding_scheduler": devices > 1}


def use_compilation_cache() -> Path:
    """Keeps compiled programs between processes; the command lines call this before anything is compiled.

    The folder is `JAX_COMPILATION_CACHE_DIR`, or else `genaffect_jax` below `XDG_CACHE_HOME` or `~/.cache`. JAX's own
    `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(given) if given else base / "genaffect_jax"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
