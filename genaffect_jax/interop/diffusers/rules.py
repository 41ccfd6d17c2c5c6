"""The conversion engine: tables of rules that map the tensors of a file one to one to parameters.

A rule has two names, ours and the file's, and a transform. In names, `{word}` stands for a number that is the same on
both sides. One function, `match`, applies a table in both directions and accepts only a complete match.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genaffect_jax.errors import WeightsError, listed
from genaffect_jax.models.parameter_names import PROJECTOR_STACKED, STACKED

Shape = tuple[int, ...]
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Transform:
    """Conversion between the axis orders of the file and of this package; the numbers stay the same."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    """From the file's axis order to ours."""
    to_theirs: Callable[[np.ndarray], np.ndarray]
    """The inverse."""

    def their_shape(self, shape: Shape) -> Shape:
        """Shape in the file of an array of shape `shape` here."""
        return self.to_theirs(np.broadcast_to(np.int8(0), shape)).shape


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(np.transpose, np.transpose)
"""[out, in] to [in, out]."""
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""[out, in, height, width] to [height, width, in, out]."""
DEPTHWISE = Transform(lambda x: x.reshape(-1), lambda x: x.reshape(-1, 1, 1, 1))
"""A 1x1 convolution of every channel with itself, [C, 1, 1, 1], to factors [C]."""
POSITIONS = Transform(
    lambda x: x.reshape(math.isqrt(x.shape[1]), -1, x.shape[2]), lambda x: x.reshape(1, -1, x.shape[2])
)
"""[1, side * side, D] to [side, side, D]."""


def patch_linear(patch: int) -> Transform:
    """A convolution over patches, [D, channels, patch, patch], to a matrix over `models.mmdit.embeddings.patchify`'s
    tokens."""
    return Transform(
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x: x.reshape(patch, patch, -1, x.shape[1]).transpose(3, 2, 0, 1),
    )


def flattened_linear(side: int) -> Transform:
    """[out, channels * side * side] to [side * side * channels, out]: a linear layer after the flattening of pixels."""
    return Transform(
        lambda x: x.reshape(len(x), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda x: x.reshape(side, side, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], -1),
    )


@dataclass(frozen=True)
class Rule:
    """One line of a table."""

    ours: str
    theirs: str
    transform: Transform = SAME

    def key(self, name: str) -> str | None:
        """The file's key for a name of ours, or None if this rule does not match."""
        return _translate(self._ours_pattern, name, self.theirs)

    def name(self, key: str) -> str | None:
        """Our name for a key of the file, or None if this rule does not match."""
        return _translate(self._theirs_pattern, key, self.ours)

    @cached_property
    def _ours_pattern(self) -> re.Pattern[str]:
        return _pattern(self.ours)

    @cached_property
    def _theirs_pattern(self) -> re.Pattern[str]:
        return _pattern(self.theirs)


def linear(ours: str, theirs: str, transform: Transform = LINEAR) -> tuple[Rule, ...]:
    """Rules of a linear layer."""
    return Rule(f"{ours}.kernel", f"{theirs}.weight", transform), Rule(f"{ours}.bias", f"{theirs}.bias")


def conv(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Rules of a convolution."""
    return Rule(f"{ours}.kernel", f"{theirs}.weight", CONV), Rule(f"{ours}.bias", f"{theirs}.bias")


def norm(ours: str, theirs: str, transform: Transform = SAME) -> tuple[Rule, ...]:
    """Rules of a normalisation with scale and bias."""
    return Rule(f"{ours}.scale", f"{theirs}.weight", transform), Rule(f"{ours}.bias", f"{theirs}.bias")


@dataclass(frozen=True)
class Piece:
    """One tensor of a file and its place among the parameters."""

    key: str
    """Name in the file."""
    shape: Shape
    """Shape in the file."""
    parameter: str
    """Name of the parameter that holds it."""
    layer: int | None
    """Index along the parameter's leading axis; None for a whole parameter."""
    transform: Transform


def match(
    rules: Sequence[Rule], parameters: Mapping[str, Shape], found: Mapping[str, Shape] | None, where: str
) -> list[Piece]:
    """The tensors of a file, each with its place among a network's parameters.

    Parameters that stack layers are split. Rules name those of the transformer's blocks (`segments.<s>.layers.<rest>`)
    `blocks.<i>.<rest>`, where i counts through all segments, and those of a projector
    (`<projector>.stack.layers.<rest>`) `<projector>.layers.<i>.<rest>`.

    Args:
        rules: the table.
        parameters: name to shape of all parameters of the network.
        found: key to shape of all tensors of the file; None if the file does not exist yet.
        where: name of the file in an error.

    Raises:
        WeightsError: the match is not one to one: unmapped names or keys, names or keys that are mapped twice, missing
            and superfluous keys, or different shapes. One error names all.
    """
    places = _layers_apart(parameters)
    problems = []
    pieces: dict[str, Piece] = {}
    for name, (parameter, layer, shape) in places.items():
        candidates = [(key, rule.transform) for rule in rules if (key := rule.key(name)) is not None]
        if len(candidates) != 1:
            problems.append(_unclear(f"parameter {name}", [key for key, _ in candidates]))
            continue
        key, transform = candidates[0]
        if key in pieces:
            problems.append(f"key {key}: mapped twice, by parameters {pieces[key].parameter} and {parameter}")
        pieces[key] = Piece(key, transform.their_shape(shape), parameter, layer, transform)
    for key in pieces if found is None else found:
        names = [target for rule in rules if (target := rule.name(key)) is not None]
        if len(names) != 1:
            problems.append(_unclear(f"key {key}", names))
        elif names[0] not in places:
            problems.append(f"key {key}: superfluous, this network has no {names[0]}")
    if found is not None:
        problems += [f"key {key}: missing (shape {pieces[key].shape})" for key in pieces if key not in found]
        problems += [
            f"key {key}: shape {found[key]}, must be {piece.shape}"
            for key, piece in pieces.items()
            if key in found and tuple(found[key]) != piece.shape
        ]
    if problems:
        raise WeightsError(f"{where}: does not fit the network: " + listed(problems))
    return list(pieces.values())


def _unclear(what: str, targets: list[str]) -> str:
    return f"{what}: mapped twice, to {' and '.join(targets)}" if targets else f"{what}: unmapped"


def _layers_apart(parameters: Mapping[str, Shape]) -> dict[str, tuple[str, int | None, Shape]]:
    """Name of each single array to its parameter, its index there and its shape."""
    lengths: dict[int, int] = defaultdict(int)
    for parameter, shape in parameters.items():
        if stacked := STACKED.fullmatch(parameter):
            lengths[int(stacked[1])] = shape[0]
    places: dict[str, tuple[str, int | None, Shape]] = {}
    for parameter, shape in parameters.items():
        if stacked := STACKED.fullmatch(parameter):
            start = sum(lengths[s] for s in range(int(stacked[1])))
            for layer in range(shape[0]):
                places[f"blocks.{start + layer}.{stacked[2]}"] = (parameter, layer, shape[1:])
        elif stacked := PROJECTOR_STACKED.fullmatch(parameter):
            for layer in range(shape[0]):
                places[f"{stacked[1]}.layers.{layer}.{stacked[2]}"] = (parameter, layer, shape[1:])
        else:
            places[parameter] = (parameter, None, shape)
    return places


def _pattern(template: str) -> re.Pattern[str]:
    parts = _FIELD.split(template)  # literal text and field names in turn
    return re.compile("".join(f"(?P<{p}>[0-9]+)" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


def _translate(pattern: re.Pattern[str], text: str, template: str) -> str | None:
    found = pattern.fullmatch(text)
    return None if found is None else template.format(**found.groupdict())
