"""The ONNX graphs of a folder, run by onnxruntime on random inputs, beside this package's networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genaffect_jax.errors import WeightsError
from genaffect_jax.export.trained import TrainedModel
from genaffect_jax.interop.onnx.signatures import Signature
from genaffect_jax.models.build import build_networks

TOLERANCE = 1e-4
"""Largest difference of keys, values and velocities, relative to the largest number of their array, or to 1 if that is
larger."""
IMAGE_TOLERANCE = 1 / 255
"""Largest difference of decoded images, which lie in [-1, 1]: half a level of 255."""
_TEXT_TOKENS = 3


@dataclass(frozen=True)
class Sizes:
    """Lengths of free axes in one comparison."""

    references: int
    """Images of the person."""
    groups: int
    """Branches with all combinations of dropped conditions in turn."""
    expressions: int
    """Images of a group."""


SIZES = (Sizes(1, 1, 1), Sizes(2, 4, 3))


def largest_differences(
    trained: TrainedModel, folder: Path, signatures: Mapping[str, Signature], all_sizes: Sequence[Sizes] = SIZES
) -> dict[str, float]:
    """Largest differences between the graphs and the networks, by output.

    The denoiser's graph gets what the conditions' graph gives.

    Args:
        trained: the model, with the exported parameters.
        folder: holds the graphs.
        signatures: see `interop.onnx.signatures`.
        all_sizes: one comparison for each.

    Returns:
        Of keys, values and velocities relative to the largest number of their array, or to 1 if that is larger; of
        images absolute.

    Raises:
        WeightsError: onnxruntime refuses a graph, or a result has another shape than ours.
    """
    cases = [_random_inputs(sizes, signatures, seed) for seed, sizes in enumerate(all_sizes)]
    expected = _expected(trained, cases)
    found: list[dict[str, np.ndarray]] = [{} for _ in cases]
    for name, signature in signatures.items():
        session = _session(folder / f"{name}.onnx")  # one at a time: each is as large as its weights
        for inputs, outputs in zip(cases, found, strict=True):
            given = {t.name: outputs[t.name] if t.name in outputs else inputs[t.name] for t in signature.inputs}
            outputs |= zip((t.name for t in signature.outputs), session.run(None, given), strict=True)
    differences: dict[str, float] = {}
    for ours, theirs in zip(expected, found, strict=True):
        for name, value in ours.items():
            if theirs[name].shape != value.shape:
                raise WeightsError(f"not exported: {name} has shape {theirs[name].shape}, must be {value.shape}")
            scale = 1.0 if name == "images" else max(1.0, float(np.abs(value).max()))
            difference = float(np.abs(theirs[name] - value).max()) / scale
            # A NaN must not lose against a number.
            differences[name] = max(differences.get(name, 0.0), difference if np.isfinite(difference) else np.inf)
    return differences


def require_equal(differences: Mapping[str, float]) -> None:
    """Raises WeightsError if a difference exceeds its tolerance; the message names all such outputs."""
    limits = {name: IMAGE_TOLERANCE if name == "images" else TOLERANCE for name in differences}
    bad = [f"{name} by {x:.1e} (at most {limits[name]:.1e})" for name, x in differences.items() if x > limits[name]]
    if bad:
        raise WeightsError(f"not exported: the graphs differ from the networks: {', '.join(bad)}")


def _random_inputs(sizes: Sizes, signatures: Mapping[str, Signature], seed: int) -> dict[str, np.ndarray]:
    """Inputs of all graphs that no graph gives."""
    rng = np.random.default_rng(seed)
    lengths = {"R": sizes.references, "G": sizes.groups, "E": sizes.expressions, "T": _TEXT_TOKENS}
    lengths["B"] = sizes.groups * sizes.expressions
    inputs: dict[str, np.ndarray] = {}
    made = {tensor.name for signature in signatures.values() for tensor in signature.outputs}
    for tensor in (tensor for signature in signatures.values() for tensor in signature.inputs):
        if tensor.name in inputs or tensor.name in made:
            continue
        shape = tuple(lengths[n] if isinstance(n, str) else n for n in tensor.shape)
        if tensor.name in ("latents", "text", "pooled"):
            value = rng.standard_normal(shape)
        elif tensor.name == "references":
            value = rng.uniform(-1, 1, shape)
        elif tensor.name.endswith("_scale"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.random(shape)
        inputs[tensor.name] = value.astype(np.float32)
    places = np.arange(sizes.groups)
    return {**inputs, "drop_identity": places % 2 == 1, "drop_expression": places // 2 % 2 == 1}


def _expected(trained: TrainedModel, cases: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """What the networks compute, in the axis order of the graphs."""
    denoiser, autoencoder = build_networks(trained.config.model)
    encoder = trained.faces.identity

    @jax.jit
    def run(parameters: Any, vae_parameters: Any, encoder_parameters: Any, given: dict[str, jax.Array]) -> Any:
        network, vae = denoiser.merge(parameters), autoencoder.merge(vae_parameters)
        groups, images = len(given["drop_identity"]), len(given["vectors"])

        def of_groups(x: jax.Array) -> jax.Array:
            return x.reshape(groups, images, *x.shape[1:])

        def repeated(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x, (groups, *x.shape))

        faces = jnp.moveaxis(given["references"], 1, -1)
        embedding = None if encoder is None else repeated(encoder.network.merge(encoder_parameters)(faces))
        text, pooled = (of_groups(given[name]) if name in given else None for name in ("text", "pooled"))
        conditions = network.encode_conditions(
            repeated(vae.to_latents(faces)),
            jnp.ones((groups, len(faces)), bool),
            repeated(given["vectors"]),
            given["drop_identity"],
            jnp.repeat(given["drop_expression"][:, None], images, axis=1),
            embedding=embedding,
            text=text,
            pooled=pooled,
        )
        latents = jnp.moveaxis(given["latents"], 1, -1)
        velocity = network(
            of_groups(latents),
            of_groups(given["sigma"]),
            conditions,
            identity_scale=given["identity_scale"],
            expression_scale=given["expression_scale"],
        ).prediction
        found = {
            "velocity": velocity.reshape(latents.shape),
            "images": jnp.clip(vae.from_latents(latents), -1.0, 1.0),
        }
        found = {name: jnp.moveaxis(value, -1, 1) for name, value in found.items()}
        for branch, pair in (("identity", conditions.identity), ("expression", conditions.expression)):
            assert pair is not None  # a denoiser has both branches
            for part, value in zip(("keys", "values"), pair, strict=True):
                tokens = value.reshape(len(value), -1, *value.shape[-3:])  # groups and images as one axis
                found[f"{branch}_{part}"] = jnp.swapaxes(tokens, 2, 3)
        return found

    parameters = trained.denoiser, trained.autoencoder, None if encoder is None else encoder.parameters
    # Matrix products of GPUs and TPUs round float32 factors otherwise.
    with jax.default_matmul_precision("highest"):
        return [{k: np.asarray(v) for k, v in run(*parameters, case).items()} for case in cases]


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime raises exceptions of its own
        raise WeightsError(f"not exported: onnxruntime refuses {path.name}: {e}") from e
