"""Consistent attention as one dense mask in float64, and random streams to compare it on."""

import numpy as np

from genaffect_jax.models.mmdit.attention import QKV
from genaffect_jax.models.mmdit.consistent_attention import Tokens

N, H = 2, 8


def streams(seed: int, groups: int, images: int, length: int, text: int, heads: int = N, size: int = H) -> list[QKV]:
    rng = np.random.default_rng(seed)
    return [
        QKV(*(rng.standard_normal((groups, images, tokens, heads, size), np.float32) for _ in range(3)))
        for tokens in (length, text)
    ]


def random_tokens(seed: int, length: int, fraction: float) -> Tokens:
    order = np.random.default_rng(seed).permutation(length)
    count = round(fraction * length)
    return Tokens(order[:count], order[count:])


def brute_force(image: QKV, text: QKV, tokens: Tokens, anchors: int) -> list[np.ndarray]:
    """One dense mask over all tokens of all images of a group, written out in float64."""
    groups, images, length = image.query.shape[:3]
    extra = text.query.shape[2]
    query, key, value = (
        np.concatenate([np.asarray(x, np.float64), np.asarray(y, np.float64)], 2).reshape(groups, -1, *x.shape[3:])
        for x, y in zip(image, text, strict=True)
    )
    owner = np.repeat(np.arange(images), length + extra)
    token = np.tile(np.arange(length + extra), images)
    offered = (owner < anchors) & np.isin(token, np.asarray(tokens.shared))
    mask = (owner[:, None] == owner[None]) | offered[None]
    scores = np.einsum("gqnh,gknh->gnqk", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("gnqk,gknh->gqnh", weights, value).reshape(groups, images, length + extra, -1)
    return [mixed[:, :, :length], mixed[:, :, length:]]


def error(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    return max(float(np.linalg.norm(f - e) / np.linalg.norm(e)) for f, e in zip(found, expected, strict=True) if e.size)
