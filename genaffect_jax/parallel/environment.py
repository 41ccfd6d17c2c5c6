"""What the bits of a program's results depend on beside the program: devices, libraries, compiler flags."""

from __future__ import annotations

import os
import platform as host
from importlib.metadata import distributions
from pathlib import Path

import jax
from jax.sharding import Mesh

from genaffect_jax.parallel.processors import usable_processors
from genaffect_jax.version import __version__

Environment = dict[str, str | int]

# Libraries that compute, or that decide the order of batches and of random numbers.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow", "grain")
# Compilers and libraries of a device; their packages' names begin so.
_OF_DEVICES = ("jax-cuda", "nvidia-", "jax-rocm", "libtpu")
_SETTINGS = ("jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_enable_x64")
# Read by XLA on CPUs: the number of threads, in place of the number of processors.
_THREADS = ("PJRT_NPROC", "NPROC")
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG")


def describe_environment(mesh: Mesh) -> Environment:
    """The environment of this process, by name.

    Names are `platform`, `device_kind`, `devices`, `processes`, `mesh.<axis>`, `platform_version` (the runtime's own
    words), `processor` (on CPUs also `processor.threads`, over which sums are divided), `version.<library>`,
    `setting.<JAX option>` and `variable.<name>`. Driver and operating system are not among them.

    Args:
        mesh: the devices that the programs run on.
    """
    device = mesh.devices.flat[0]
    found: Environment = {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": mesh.size,
        "processes": jax.process_count(),
        **{f"mesh.{name}": size for name, size in mesh.shape.items()},
        "platform_version": device.client.platform_version,
        "processor": _processor(),
    }
    if device.platform == "cpu":
        found["processor.threads"] = usable_processors()
    found["version.genaffect_jax"] = __version__
    installed = {str(d.metadata["Name"]).lower(): d.version for d in distributions()}
    for name in sorted(installed):
        if name in _LIBRARIES or name.startswith(_OF_DEVICES):
            found[f"version.{name}"] = installed[name]
    found |= {f"setting.{name}": str(getattr(jax.config, name)) for name in _SETTINGS}
    variables = _VARIABLES + (_THREADS if device.platform == "cpu" else ())
    return found | {f"variable.{name}": os.environ[name] for name in variables if name in os.environ}


def _processor() -> str:
    """Its maker's name; that of its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, host.machine())
