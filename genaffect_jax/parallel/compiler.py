"""Compiler settings of the training step and the sampler, for the kind of device they are compiled for."""

from __future__ import annotations

import jax

CompilerOptions = dict[str, bool | int | str]


def compiler_options() -> CompilerOptions:
    """Options for `jax.jit(..., compiler_options=...)` on this process's devices.

    On GPUs matrix products go straight to cuBLAS: XLA's own (Triton) products are tried first otherwise, and where
    they lose, the bias and GELU after a product stay passes of their own instead of part of it. Measured in
    docs/performance.md.
    """
    return {"xla_gpu_enable_triton_gemm": False} if jax.default_backend() == "gpu" else {}
