"""The losses of the face encoders: softmax over people with an angular margin, regression of expression channels."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Key, UInt8

from genaffect_jax.config.encoders import EncoderRun, FaceEncoderConfig
from genaffect_jax.models.face_encoders.networks import FaceEncoder, unit
from genaffect_jax.models.functional import Parameters
from genaffect_jax.training.step import Batch, Terms

ENCODER = "encoder."  # prefix of the parameters that become the encoder's weight file
Degrade = Callable[[Parameters, UInt8[Array, "B S S 3"], Key[Array, ""]], Float32[Array, "B S S 3"]]


class EncoderInTraining(nnx.Module):
    """An encoder, and for identity one learned direction per person of the training set."""

    def __init__(self, config: FaceEncoderConfig, people: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.encoder = FaceEncoder(config, dtype=dtype, rngs=rngs)
        if config.target == "identity":
            # Only directions count. A person is seen only some hundred times. Short vectors turn quickly under Adam,
            # whose steps do not shrink with them; with unit entries the centres would hardly leave their start.
            centres = 0.05 * jax.random.normal(rngs.params(), (people, config.width), jnp.float32)
            self.centres = nnx.Param(centres, logical_axes=(None, None))


def encoder_parameters(trained: Parameters) -> Parameters:
    """The encoder's own parameters among those of `EncoderInTraining`."""
    return {name.removeprefix(ENCODER): value for name, value in trained.items() if name.startswith(ENCODER)}


def arcface_logits(
    embeddings: Float[Array, "B W"],
    centres: Float[Array, "P W"],
    people: Int[Array, " B"],
    *,
    margin: float,
    scale: float,
) -> Float32[Array, "B P"]:
    """`scale * cos(angle)` to every centre, with the angle to the own centre widened by `margin` (radians).

    Deng et al. 2019, arXiv 1801.07698, equation 3. Where angle + margin exceeds pi, the cosine would rise again; there
    `cos(angle) - margin * sin(margin)` continues it, as in the authors' code.

    Args:
        embeddings: unit vectors.
        centres: of any length but 0.
        people: index of each embedding's own centre.
        margin: additive angular margin; 0 gives a plain normalised softmax.
        scale: factor of the cosines.
    """
    cosine = jnp.clip(embeddings.astype(jnp.float32) @ unit(centres).T, -1.0, 1.0)
    own = jnp.take_along_axis(cosine, people[:, None], axis=1)
    # The floor keeps the gradient of the square root finite at an angle of 0.
    sine = jnp.sqrt(jnp.maximum(1.0 - own * own, 1e-12))
    widened = jnp.where(
        own > np.cos(np.pi - margin),
        own * np.cos(margin) - sine * np.sin(margin),
        own - margin * np.sin(margin),
    )
    return scale * jnp.where(jax.nn.one_hot(people, centres.shape[0], dtype=bool), widened, cosine)


def expression_loss(
    predicted: Float[Array, "B W"], true: Float[Array, "B W"], deviation: Float[Array, " W"]
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Sum and count of the Huber losses of all channels' errors, in units of each channel's `deviation`.

    The loss is quadratic up to one deviation and linear beyond. In units of deviations a rare action unit counts as
    much as a common one; the linear part keeps its few large values from dominating.
    """
    error = jnp.abs(predicted.astype(jnp.float32) - true) / deviation
    return jnp.where(error < 1.0, 0.5 * error * error, error - 0.5).sum(), jnp.float32(error.size)


def channel_deviations(vectors: Float[np.ndarray, "B W"]) -> Float32[np.ndarray, " W"]:
    """Standard deviation of each channel, at least 0.03, so that a channel that hardly occurs does not dominate."""
    return np.maximum(vectors.std(0), 0.03).astype(np.float32)


def make_encoder_loss(
    config: EncoderRun, degrade: Degrade, deviation: Float32[np.ndarray, " W"]
) -> Callable[[EncoderInTraining, Parameters, Batch, Key[Array, " G"]], Terms]:
    """Builds the loss `(model, frozen_components, batch, keys) -> Terms`.

    The batch is that of `training.denoiser.batch`, with images and without `prompt` and `embedding`. An identity
    encoder is trained on all images, an expression encoder on the targets, whose vectors the batch holds.

    Args:
        config: target, margin and scale.
        degrade: degrades the images; see `training.face_encoder.degrade`. `frozen_components` are the parameters of the
            autoencoder that it reads.
        deviation: `channel_deviations` of the training images.
    """

    def identity(
        model: EncoderInTraining, frozen_components: Parameters, batch: Batch, keys: Key[Array, " G"]
    ) -> Terms:
        images = jnp.concatenate([batch["reference"], batch["target"]], axis=1)
        people = jnp.repeat(batch["identity"], images.shape[1])
        embeddings = model.encoder(degrade(frozen_components, images.reshape(-1, *images.shape[2:]), keys[0]))
        logits = arcface_logits(embeddings, model.centres[...], people, margin=config.margin, scale=config.scale)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), people[:, None], axis=1)
        right = (logits.argmax(-1) == people).sum()
        count = jnp.float32(len(people))
        return {"loss": (losses.sum(), count), "accuracy_with_margin": (right.astype(jnp.float32), count)}

    def expression(
        model: EncoderInTraining, frozen_components: Parameters, batch: Batch, keys: Key[Array, " G"]
    ) -> Terms:
        images, true = batch["target"], batch["expression"]
        predicted = model.encoder(degrade(frozen_components, images.reshape(-1, *images.shape[2:]), keys[0]))
        true = true.reshape(predicted.shape)
        absolute = jnp.abs(predicted - true)
        return {
            "loss": expression_loss(predicted, true, jnp.asarray(deviation)),
            "absolute_error": (absolute.sum(), jnp.float32(absolute.size)),
        }

    return identity if config.encoder.target == "identity" else expression
