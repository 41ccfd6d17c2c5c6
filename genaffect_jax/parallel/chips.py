"""What devices have, as their makers document it: memory, peak rates, links."""

from __future__ import annotations

from dataclasses import dataclass

import jax


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

# Dense bfloat16 products in FLOP/s, from NVIDIA's data sheets, by the beginning of JAX's `device_kind`.
_GPUS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Documented peak of bfloat16 products of one device, in FLOP/s; None if it is not known here."""
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind].peak
    return next((peak for name, peak in _GPUS.items() if device.device_kind.startswith(name)), None)
