"""The held-out report of a face encoder: how well it does its own task, and how well it ignores the other factor."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from genaffect_jax.data.sources.base import Example, Source
from genaffect_jax.data.sources.stored import render_redressed
from genaffect_jax.expressions.action_units import CHANNELS, neutral
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.metrics.expression import expression_accuracy, spread_shares
from genaffect_jax.metrics.identity import mean_cosine, verify

Encode = Callable[[UInt8[np.ndarray, "B S S 3"]], Float32[np.ndarray, "B W"]]
Images = UInt8[np.ndarray, "B S S 3"]
_PEOPLE, _VARIANTS = 32, 6  # rendered images in which one factor alone changes


class HeldOut:
    """Images of people who were not trained on.

    Args:
        source: images.
        people: the held-out people.
        soften: passes images through an autoencoder, which makes them as soft as samples of a denoiser; None leaves
            these measurements out.
        procedural_people: numbers of procedural people to render images of in which one factor changes; `()` for other
            sources.
        largest: largest number of images; the first ones of the source are taken.
    """

    def __init__(
        self,
        source: Source,
        people: Sequence[str],
        soften: Callable[[Images], Images] | None,
        *,
        procedural_people: Sequence[int] = (),
        largest: int = 4000,
    ) -> None:
        wanted = set(people)
        places = [i for i, p in enumerate(source.examples) if p.identity in wanted]
        places = places[:largest]  # images are ordered by person, so that all but the last person are complete
        self.shown: list[Example] = [source.examples[i] for i in places]
        self.images: Images = np.stack([source.load(i) for i in places])
        self.soften, self.procedural_people = soften, tuple(procedural_people)[:_PEOPLE]


def identity_report(encode: Encode, held_out: HeldOut) -> dict[str, Any]:
    """Verification across expressions (clothes and background differ too), and cosines when one factor changes.

    Raises:
        ValueError: too few people or images to verify (see `metrics.identity.verify`).
    """
    names = [p.identity for p in held_out.shown]
    vectors = encode(held_out.images)
    report: dict[str, Any] = {
        "people": len(set(names)),
        "images": len(names),
        "verification": asdict(verify(vectors, names)),
    }
    # A correlation near -1 would mean that embeddings change with the expression.
    pairs = [_pairs_of(vectors, held_out.shown, name) for name in sorted(set(names))]
    cosines, distances = np.concatenate([c for c, _ in pairs]), np.concatenate([d for _, d in pairs])
    report["same_person"] = {
        "cosine_mean": float(cosines.mean()),
        "cosine_deviation": float(cosines.std()),
        "cosine_5th_percentile": float(np.percentile(cosines, 5)),
        "correlation_with_expression_distance": _correlation(cosines, distances),
    }
    if held_out.soften is not None:
        report["verification_through_autoencoder"] = asdict(verify(encode(held_out.soften(held_out.images)), names))
    if held_out.procedural_people:
        report["mean_cosine_when_only_this_changes"] = _one_factor_cosines(encode, held_out)
    return report


def expression_report(encode: Encode, held_out: HeldOut, typical: Float32[np.ndarray, " W"]) -> dict[str, Any]:
    """Absolute errors beside those of the constant guess `typical`, and how predictions depend on the person.

    Units are those of the channels: action units 0 to 1, gaze and head -1 to 1.

    Args:
        encode: the encoder.
        held_out: images to measure on.
        typical: mean expression vector of the training images.
    """
    true = np.stack([p.expression for p in held_out.shown])
    errors = expression_accuracy(encode(held_out.images), true, typical)
    summary = {k: v for k, v in asdict(errors).items() if not k.startswith("channel")}
    report: dict[str, Any] = {
        "people": len({p.identity for p in held_out.shown}),
        "images": len(true),
        "absolute_error": summary,
        "channels": {
            name: {"error": e, "baseline": b}
            for name, e, b in zip(CHANNELS, errors.channels, errors.channel_baselines, strict=True)
        },
    }
    if held_out.soften is not None:
        soft = expression_accuracy(encode(held_out.soften(held_out.images)), true, typical)
        report["absolute_error_through_autoencoder"] = {"mean": soft.mean, "active": soft.active}
    if held_out.procedural_people:
        people, size = held_out.procedural_people, held_out.images.shape[1]
        shown = _varied_vectors(held_out.shown, _VARIANTS)
        rendered = np.stack([render_redressed(p, v, p, size) for p in people for v in shown])
        values = encode(rendered).reshape(len(people), len(shown), -1)
        over_people, over_expressions = spread_shares(values)
        report["deviation_of_predictions"] = {
            "same_expression_on_different_people": over_people,
            "different_expressions_on_same_person": over_expressions,
            "people": len(people),
            "expressions": len(shown),
        }
    return report


def write_report(report: dict[str, Any], path: Path) -> None:
    """Writes a report as JSON; the file appears complete or not at all."""
    write_atomically(path, json.dumps(report, indent=2) + "\n")


def _one_factor_cosines(encode: Encode, held_out: HeldOut) -> dict[str, float]:
    """Mean cosine of pairs in which only the expression, only the clothes and background, or only the person differ."""
    people, size = held_out.procedural_people, held_out.images.shape[1]
    rest, shown = neutral(), _varied_vectors(held_out.shown, _VARIANTS)
    others = [p + 1 for p in people]  # numbers of people whose clothes are worn: any but the person's own

    def cosine(images: list[np.ndarray], groups: int) -> float:
        vectors = encode(np.stack(images))
        return mean_cosine(vectors.reshape(groups, len(images) // groups, -1))

    few = others[:_VARIANTS]
    result = {
        "expression": cosine([render_redressed(p, v, p, size) for p in people for v in shown], len(people)),
        "clothes_and_background": cosine(
            [render_redressed(p, rest, o, size) for p in people for o in few], len(people)
        ),
    }
    if len(people) > 1:
        result["person"] = cosine([render_redressed(p, rest, o, size) for o in few for p in people], len(few))
    return result


def _varied_vectors(shown: Sequence[Example], count: int) -> list[np.ndarray]:
    """`count` different expression vectors that occur among the images, evenly spaced in their order."""
    different = list({p.expression_key: p.expression for p in shown}.values())
    return [different[i] for i in np.linspace(0, len(different) - 1, min(count, len(different))).astype(int)]


def _pairs_of(vectors: np.ndarray, shown: Sequence[Example], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and expression distances of all pairs of one person's images."""
    places = [i for i, p in enumerate(shown) if p.identity == name]
    first, second = np.triu_indices(len(places), 1)
    expressions = np.stack([shown[i].expression for i in places])
    distance = np.sqrt(np.square(expressions[first] - expressions[second]).sum(-1))
    return (vectors[places] @ vectors[places].T)[first, second], distance


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")
