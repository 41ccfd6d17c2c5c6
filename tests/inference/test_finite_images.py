"""Images that are not finite are an error, and never grey pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax import sample
from genaffect_jax.errors import SamplingError
from genaffect_jax.expressions.grammar import Expression, parse_expressions
from genaffect_jax.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline(trained_workdir):
    return Pipeline.load(trained_workdir, devices=jax.devices()[:2])


@pytest.mark.usefixtures("one_device")
def test_guidance_that_overflows_saves_nothing_and_is_named(trained_workdir, tmp_path, capsys):
    argv = ["--model", str(trained_workdir), "--identity", "seed:1", "--steps", "2", "--out", str(tmp_path / "set")]
    assert sample.main([*argv, "--expressions", "joy", "--guidance", "3e38"]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert "not finite" in error[0]
    assert "lower guidance (now 3e+38), or the weight" in error[0]
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 3])
def test_one_image_that_is_not_finite_is_found_among_the_others_on_every_device(pipeline, value, place):
    expressions = parse_expressions("joy, fear, anger, pride")
    broken = np.full_like(expressions[place].vector, value)
    wrong = [*expressions[:place], Expression("broken", broken, "units", None), *expressions[place + 1 :]]
    with pytest.raises(SamplingError, match="not finite"):
        pipeline("seed:1", wrong, steps=1, chunk=2)
    assert pipeline("seed:1", expressions, steps=1, chunk=2).images.shape[0] == 4


def test_a_diverged_checkpoint_is_told_from_settings(pipeline, monkeypatch):
    parameters = {name: jnp.full_like(value, jnp.nan) for name, value in pipeline.sampler.parameters.items()}
    monkeypatch.setattr(pipeline.sampler, "parameters", parameters)
    with pytest.raises(SamplingError, match=r"none is kept: lower the weight of a LoRA file; .*checkpoint"):
        pipeline("seed:1", "joy", steps=1, guidance_expression=1.0)
