"""One simulated device instead of all eight, where the number of devices is not what a test is about."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def first_device() -> Iterator[None]:
    """Trainings and pipelines made in this block use one device: their programs compile and run in less time."""
    import jax

    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: one)
        patch.setattr(jax, "local_devices", lambda *_: one)
        yield
