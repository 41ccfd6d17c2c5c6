"""A training writes the range of its images' latents, with a digest; too few people are said to be too few."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from genaffect_jax.checkpoints.components import install_latent_range, read_latent_range
from genaffect_jax.checkpoints.digests import is_recorded
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.data.latent_range import LatentRange
from genaffect_jax.training.denoiser.task import train_denoiser

TOO_FEW = "people are too few to tell unfamiliar references when sampling"


def trained(config, folder) -> str:
    text = io.StringIO()
    assert train_denoiser(config, folder, Console(file=text, width=200))
    return text.getvalue()


@pytest.mark.usefixtures("one_device")
def test_a_training_writes_the_range_of_its_people_whether_latents_are_cached_or_not(tiny_config, tmp_path):
    config = dataclasses.replace(
        tiny_config,
        data=dataclasses.replace(tiny_config.data, identities=14),
        train=dataclasses.replace(tiny_config.train, steps=1, probe_every=0),
    )
    ranges = []
    for cached in (False, True):
        folder = tmp_path / str(cached)
        run = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_latents=cached))
        assert TOO_FEW not in trained(run, folder)
        run_dir = RunDir(folder)
        assert is_recorded(run_dir, run_dir.latent_range)
        assert run_dir.latent_range in run_dir.components
        ranges.append(read_latent_range(run_dir))
    np.testing.assert_allclose(ranges[0].mean, ranges[1].mean, atol=2e-3)
    np.testing.assert_allclose(ranges[0].limit, ranges[1].limit, rtol=0.02)

    # A folder of an earlier version gets one when its run continues.
    before = run_dir.latent_range.read_bytes()
    run_dir.latent_range.unlink()
    run_dir.digests.unlink()
    assert read_latent_range(run_dir) is None
    trained(run, folder)
    assert run_dir.latent_range.read_bytes() == before


@pytest.mark.usefixtures("one_device")
def test_too_few_people_are_told_and_leave_no_range(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, steps=1, probe_every=0))
    assert TOO_FEW in trained(config, tmp_path)
    assert read_latent_range(RunDir(tmp_path)) is None


def test_a_range_of_an_earlier_start_goes_where_there_are_too_few_people_now(tmp_path):
    run_dir = RunDir(tmp_path)
    latents = np.random.default_rng(0).normal(size=(20, 4, 4, 2)).astype(np.float32)
    known = LatentRange.fit(latents, [str(i) for i in range(20)])
    assert install_latent_range(run_dir, lambda: known) is not None
    assert install_latent_range(run_dir, lambda: None) is None
    assert not run_dir.latent_range.exists()
    assert not is_recorded(run_dir, run_dir.latent_range)
    assert read_latent_range(run_dir) is None
