"""The loss conditions the model on what the batch says, without what this step drops; targets may share."""

import jax
import jax.numpy as jnp
import numpy as np

from genaffect_jax.config import FlowConfig
from genaffect_jax.diffusion import flow
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.genaffect import GenAffect
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

    def __call__(self, noisy, sigma, conditions, sharing):
        self.noisy, self.sigma, self.sharing = noisy, sigma, sharing
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
    assert model.sharing is None
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


def test_targets_that_share_have_one_noise_level_and_see_each_other_in_the_steps_that_are_not_dropped(tiny_model):
    network = Functional(lambda rngs: GenAffect(tiny_model, rngs=rngs))
    parameters = network.init(jax.random.key(0))
    # No parameter is zero: images see each other's tokens only where these reach the prediction.
    keys = jax.random.split(jax.random.key(1), len(parameters))
    parameters = {
        name: p + 0.2 * jax.random.normal(key, p.shape)
        for key, (name, p) in zip(keys, sorted(parameters.items()), strict=True)
    }
    rng = np.random.default_rng(0)
    batch = {
        "reference": rng.standard_normal((2, 1, 8, 8, 4), np.float32),
        "target": rng.standard_normal((2, E, 8, 8, 4), np.float32),
        "expression": rng.random((2, E, 40), np.float32),
    }
    seen = {}

    class Watched(GenAffect):
        def __call__(self, noisy, sigma, conditions, *, sharing):
            seen["sigma"], seen["sharing"] = sigma, sharing
            # How the prediction of the first image depends on the second one's latents.
            seen["influence"] = jax.grad(
                lambda x: (GenAffect.__call__(self, x, sigma, conditions, sharing=sharing).prediction[:, 0] ** 2).sum()
            )(jnp.asarray(noisy))[:, 1]
            return MMDiTOutput(jnp.zeros_like(noisy))

    model = network.merge(parameters)
    model.__class__ = Watched
    loss = make_denoiser_loss(FlowConfig(consistency=0.5, drop_consistency=0.5), None)
    met = set()
    for step in (8, 9):
        loss(model, {}, batch, jax.random.split(jax.random.key(step), 2))
        assert (seen["sigma"] == seen["sigma"][:, :1]).all()
        assert seen["sigma"][0, 0] != seen["sigma"][1, 0]
        shares = bool(seen["sharing"].active.all())
        assert shares == bool(seen["sharing"].active.any())
        assert bool((jnp.abs(seen["influence"]) > 0).any()) == shares
        met.add(shares)
    assert met == {False, True}
