"""What the autoencoder trains on: varied images, batches used several times, and their variation on the device."""

import jax
import numpy as np
import pytest

from genaffect_jax.config import MeshConfig
from genaffect_jax.data.echo import EchoedBatches
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.procedural import ProceduralSource
from genaffect_jax.data.sources.varied import VariedSource
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.autoencoder.loss import jitter
from genaffect_jax.training.prefetch import Prefetched

SOURCE = ProceduralSource(image_size=32, identities=3, expressions_per_identity=4)
PEOPLE = ["avatar000000", "avatar000001", "avatar000002"]


def batches(times):
    loader = make_loader(SOURCE, PEOPLE, batch_size=2, expressions_per_set=1, seed=0, workers=0)
    return EchoedBatches(loader, times)


def test_every_batch_comes_the_stated_number_of_times_in_a_row():
    once, thrice = batches(1), batches(3)
    expected = [next(once)["target"] for _ in range(3)]
    for batch in expected:
        uses = [next(thrice) for _ in range(3)]
        np.testing.assert_array_equal(uses[0]["target"], batch)
        assert uses[1] is uses[2] is uses[0]
    assert (expected[0] != expected[1]).any()


@pytest.mark.parametrize("used", [0, 1, 2, 3, 4])
def test_a_state_saved_inside_a_repetition_continues_exactly(used):
    first = batches(3)
    for _ in range(used):
        next(first)
    second = batches(3)
    second.set_state(first.get_state())
    for _ in range(5):
        np.testing.assert_array_equal(next(second)["target"], next(first)["target"])


def test_a_batch_used_again_is_not_sent_to_the_devices_again():
    stream = Prefetched(batches(2), make_mesh(MeshConfig(), jax.devices()[:1]))
    first, again, second = (next(stream) for _ in range(3))
    stream.close()
    assert again["target"] is first["target"]
    assert second["target"] is not first["target"]


def test_worker_processes_with_one_thread_make_the_same_pixels():
    varied = VariedSource(ProceduralSource(256, 3, 8), 256, seed=1)  # large enough for several threads
    streams = [make_loader(varied, PEOPLE, batch_size=4, expressions_per_set=3, seed=0, workers=w) for w in (0, 1)]
    for _ in range(3):
        here, there = (next(stream) for stream in streams)
        for name, array in here.items():
            np.testing.assert_array_equal(there[name], array)
    streams[1].close()


def test_zero_repetitions_are_refused():
    with pytest.raises(ValueError, match="times=0: must be at least 1"):
        batches(0)


def test_varied_images_are_kept_changed_or_replaced_and_repeatable():
    inner = ProceduralSource(32, 20, 2)
    varied = VariedSource(inner, 32, seed=1)
    plain = [inner.load(i) for i in range(40)]
    seen = [varied.load(i) for i in range(40)]
    kept = [np.array_equal(a, b) for a, b in zip(plain, seen, strict=True)]
    assert 8 < sum(kept) < 32  # half of them on average
    np.testing.assert_array_equal(varied.load(7), seen[7])
    other = VariedSource(inner, 32, seed=2)
    assert any((other.load(i) != seen[i]).any() for i in range(5))
    assert varied.fingerprint() != other.fingerprint()


def test_jitter_changes_every_image_with_the_key_and_keeps_its_content():
    images = np.stack([SOURCE.load(i) for i in range(8)])
    one, two = (np.asarray(jitter(images, jax.random.key(k))) for k in (0, 1))
    assert one.dtype == np.uint8
    assert all((a != b).any() for a, b in zip(one, two, strict=True))
    # Moving, mirroring and swapping keep the mean over pixels and channels; the gains change it by a fifth at most.
    ratio = one.mean((1, 2, 3)) / images.mean((1, 2, 3))
    assert ratio.min() > 0.75
    assert ratio.max() < 1.25
