"""The denoiser's loss conditions the model on what the batch says, without what the draw of this step drops."""

import jax
import numpy as np

from genaffect_jax.config import FlowConfig
from genaffect_jax.diffusion import flow
from genaffect_jax.models.mmdit.model import MMDiTOutput
from genaffect_jax.training.denoiser.loss import make_denoiser_loss

G, E = 6, 3


class Recorder:
    """In the place of a denoiser: keeps what it is conditioned on and given, and predicts nothing."""

    def encode_conditions(self, reference, mask, expression, *, drop_identity, drop_expression, **_):
        self.given = {
            "reference": reference,
            "expression": expression,
            "drop_identity": drop_identity,
            "drop_expression": drop_expression,
        }
        assert mask.all()

    def __call__(self, noisy, sigma, conditions):
        self.noisy, self.sigma = noisy, sigma
        return MMDiTOutput(np.zeros_like(noisy))


def test_the_conditions_of_a_step_are_those_of_its_batch_dropped_as_sampled():
    rng, keys = np.random.default_rng(0), jax.random.split(jax.random.key(3), G)
    batch = {
        "reference": rng.standard_normal((G, 1, 8, 8, 4), np.float32),
        "target": rng.standard_normal((G, E, 8, 8, 4), np.float32),
        "expression": rng.random((G, E, 40), np.float32),
    }
    config, model = FlowConfig(drop_identity=0.4, drop_expression=0.4), Recorder()
    terms = make_denoiser_loss(config, None)(model, {}, batch, keys)
    # Every set draws from its own key, whatever sets are beside it.
    sigma_keys, noise_keys, drop_keys = zip(*(jax.random.split(key, 3) for key in keys), strict=True)
    drops = [flow.sample_drops(key, 1, E, config) for key in drop_keys]
    identity, expression, _ = (np.concatenate(drop) for drop in zip(*drops, strict=True))
    for drop in (identity, expression):
        assert drop.any()
        assert not drop.all()
    np.testing.assert_array_equal(model.given["drop_identity"], identity)
    np.testing.assert_array_equal(model.given["drop_expression"], expression)
    for name in ("reference", "expression"):
        np.testing.assert_array_equal(model.given[name], batch[name])
    # What is asked of the model is the velocity at the noise level that it is told.
    noise = np.stack([jax.random.normal(key, batch["target"].shape[1:]) for key in noise_keys])
    sigma = np.stack([flow.sample_sigma(key, (E,), config) for key in sigma_keys])
    np.testing.assert_allclose(model.sigma, sigma, rtol=1e-6)
    np.testing.assert_allclose(model.noisy, flow.interpolate(batch["target"], noise, model.sigma), atol=1e-6)
    total, count = terms["loss"]
    np.testing.assert_allclose(total / count, np.square(noise - batch["target"]).mean(), rtol=1e-5)
