"""Peak rates of devices: what a utilisation is quoted of."""

from __future__ import annotations

import jax

from genaffect_jax.parallel.topology import CHIPS

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
