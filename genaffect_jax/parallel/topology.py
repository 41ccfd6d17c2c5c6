"""TPU topologies that need not be there: their chips as devices to compile for, and what one chip has."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from genaffect_jax.config import install_command

EXAMPLES = "v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x2, v5p:4x4x4, v6e:4x4"


class TopologyError(ValueError):
    """There is no such topology, its chip is not known, or there is no TPU compiler; the message says which."""


@dataclass(frozen=True)
class Chip:
    """What one chip has, as its maker documents it."""

    name: str
    """Name in a topology."""
    memory: int
    """High-bandwidth memory (HBM), in bytes."""
    peak: float
    """Peak of bfloat16 products, in FLOP/s."""
    memory_rate: float
    """Memory bandwidth, in bytes/s."""
    link_rate: float
    """What it can send to other chips over all of its links at once (half of the documented two-way bandwidth), in
    bytes/s."""


# https://cloud.google.com/tpu/docs/v5e, /v5p and /v6e (system architecture). Documented GB of HBM are GiB: the compiler
# gives programs 15.75 of v5e's 16. By JAX's `device_kind`.
CHIPS = {
    "TPU v5 lite": Chip("v5e", 16 << 30, 197e12, 819e9, 200e9),
    "TPU v5": Chip("v5p", 95 << 30, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 32 << 30, 918e12, 1638e9, 400e9),
}


def topology_devices(topology: str) -> tuple[list[jax.Device], Chip]:
    """The chips of a topology, in the order of its coordinates, and what one of them has.

    They can be put into a mesh and compiled for; nothing can be placed on them. JAX itself should run on the CPU
    (`jax_platforms`), or it looks for chips of this machine once the TPU compiler is installed.

    Args:
        topology: kind of chip and how many along each axis of its network, in libtpu's words: `v5e:4x4`.

    Raises:
        TopologyError: libtpu is not installed, refuses the topology, or the chip is not one of `CHIPS`.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(f"no TPU compiler here (libtpu is not installed): {install_command('tpu')}")
    # The compiler asks nobody about its host, and needs no chip of its own.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        devices: list[Any] = list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (RuntimeError, ValueError) as e:  # JaxRuntimeError is a RuntimeError
        reason = str(e).splitlines()[0]
        raise TopologyError(f"--topology {topology}: {reason} (known are {EXAMPLES} and the like)") from e
    kind = devices[0].device_kind
    if kind not in CHIPS:
        names = ", ".join(chip.name for chip in CHIPS.values())
        raise TopologyError(
            f"--topology {topology}: nothing is known of {kind!r} (known are chips {names}: {EXAMPLES})"
        )
    return devices, CHIPS[kind]
