"""Compiler settings of the training step and the sampler, for the kind of device they are compiled for."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

import jax

from genaffect_jax.io.output import one_line

CompilerOptions = dict[str, bool | int | str]
Platform = Literal["cpu", "gpu", "tpu"]
_target: ContextVar[Platform | None] = ContextVar("target", default=None)
# A context that JAX knows of: what was traced under one value is never used under the other.
_deterministic = jax.make_user_context(False)


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


@contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    """Programs made and traced inside give the same bits each time, in one environment (`parallel.environment`).

    It is a property of programs, not of networks: it reaches their compiler options (`compiler_options`,
    `deterministic_options`), and every attention in them, of frozen networks too (`kernels.attention`). What cannot be
    given, `training.repetition` refuses.
    """
    with _deterministic(enabled):
        yield


def is_deterministic() -> bool:
    """Whether programs are made inside `deterministic`."""
    return _deterministic.value


def deterministic_options() -> CompilerOptions:
    """Compiler options of a program whose results enter a training: none outside of `deterministic`.

    On GPUs the compiler times algorithms of matrix products and convolutions and takes the fastest, which is not the
    same one each time; their results differ in the last bits. Inside `deterministic` it times nothing and takes the
    first of each library's own list, and operations that have a form with a fixed order of sums use it.
    """
    if not (is_deterministic() and platform() == "gpu"):
        return {}
    return {"xla_gpu_exclude_nondeterministic_ops": True, "xla_gpu_autotune_level": 0}


def compiler_options(devices: int = 1) -> CompilerOptions:
    """Options for `jax.jit(..., compiler_options=...)` of a program for so many devices.

    On GPUs matrix products go straight to cuBLAS: XLA's own (Triton) products are tried first otherwise, and where they
    lose, the bias and GELU after a product stay passes of their own instead of part of it. Measured in
    docs/notes/sampling_speed.md#the-denoiser-on-one-gpu. Several of them send each other parameters and gradients while
    they compute. Inside `deterministic`, `deterministic_options` are added.
    """
    if platform() != "gpu":
        return {}
    return {
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_enable_latency_hiding_scheduler": devices > 1,
        **deterministic_options(),
    }


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs between processes; the command lines call this before anything is compiled.

    The folder is `JAX_COMPILATION_CACHE_DIR`, or else `genaffect_jax` below `XDG_CACHE_HOME` or `~/.cache`. JAX's own
    `JAX_ENABLE_COMPILATION_CACHE=false` switches it off. Where nothing can be written there, as without a home folder,
    nothing is kept; one line on stderr says so.

    Returns:
        The folder; None if nothing is kept.
    """
    if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return None
    given, general = os.environ.get("JAX_COMPILATION_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(general) if general else Path.home() / ".cache"
        folder = Path(given) if given else base / "genaffect_jax"
        if "://" not in str(given):  # else it is not a place on this machine, and JAX's own matter
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except (OSError, RuntimeError) as e:  # RuntimeError: the user has no home folder
        jax.config.update("jax_compilation_cache_dir", None)
        reason = f"{e.filename}: {e.strerror}" if isinstance(e, OSError) and e.strerror else str(e)
        print(
            f"warning: compiled programs are not kept for the next start ({one_line(reason)}); "
            "JAX_COMPILATION_CACHE_DIR names a folder for them",
            file=sys.stderr,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(given or folder))
    return folder
