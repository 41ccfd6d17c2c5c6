"""TPU topologies that this machine does not have: their chips as devices to compile for, and one chip's figures."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from genaffect_jax.errors import TopologyError, install_command
from genaffect_jax.parallel.chips import CHIPS, Chip

EXAMPLES = "v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x2, v5p:4x4x4, v6e:4x4"


def topology_devices(topology: str) -> tuple[list[jax.Device], Chip]:
    """The chips of a topology, in the order of its coordinates, and the figures of one of them.

    A mesh of them can be compiled for; no array can be placed on them. JAX itself should run on the CPU
    (`jax_platforms`): with the TPU compiler installed, it would look for chips of this machine.

    Args:
        topology: kind of chip and number of chips along each axis of its network, as libtpu writes it: `v5e:4x4`.

    Raises:
        TopologyError: libtpu is not installed, refuses the topology, or the chip is not one of `CHIPS`.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(f"no TPU compiler here (libtpu is not installed): {install_command('tpu')}")
    # Keeps the compiler from looking for a TPU host and for chips.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        devices: list[Any] = list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (RuntimeError, ValueError) as e:  # JaxRuntimeError is a RuntimeError
        reason = str(e).splitlines()[0]
        known = f"known are {EXAMPLES} and the like"
        raise TopologyError(f"{reason} ({known})", field="topology", found=topology) from e
    kind = devices[0].device_kind
    if kind not in CHIPS:
        names = ", ".join(chip.name for chip in CHIPS.values())
        reason = f"nothing is known of {kind!r} (known are chips {names}: {EXAMPLES})"
        raise TopologyError(reason, field="topology", found=topology)
    return devices, CHIPS[kind]
