"""The expression grammar: facial expressions as text.

    request    = item { ("," | ";") item }
    item       = group [":" number] | number "*" group | blend
    group      = "all" | name "/" "*" | name "/" name "/" "*"
    blend      = term { "+" term }
    term       = face [":" number] | number "*" face | setting { "," setting }
    face       = word | image
    setting    = channel "=" number

`word` is one of the 135 words or `neutral`. `image` is an image file of a face with the expression (an exemplar): a
path that ends like an image (`faces/anna.png`), or any path in double quotes. A blend adds its faces times their
weights (0 to 2), clips every channel to its range and then sets the named channels, so `joy + AU43L=1` is joy with the
left eye shut. `AU12=0.5` sets both sides and `AU12L=0.5` the person's left; the one-sided setting wins in either order.
Settings separated by commas belong together: `joy,AU6=0.5,AU12=0.9,anger` is three expressions; `;` always starts a new
one. A space (`expressions.space`) turns words and images into vectors; the default is that of action units.

Every name of a cluster or sub-cluster is also a word, and a bare name is always the word. `joy/*` is all words of the
cluster joy, `zest/*` of the sub-cluster zest, `sadness/sadness/*` of a sub-cluster with the name of its cluster; `all`
is the 135 words. A group may have a weight but cannot be part of a blend. Case and white space do not matter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float

from genaffect_jax.errors import ExpressionError
from genaffect_jax.expressions.action_units import CHANNELS, DEGREES, INDEX, LOWEST, MEDIAN_UNITS, SIDED_UNITS
from genaffect_jax.expressions.labels import group_suggestion, suggestion
from genaffect_jax.expressions.space import AnySpace, ExpressionSpace, UnitSpace
from genaffect_jax.expressions.vocabulary import vocabulary

HIGHEST_WEIGHT = 2.0
SLUG_LENGTH = 100

# Names allowed before "=": every channel, and sided units without a side. Lower case to the written name.
_SETTINGS = {c.lower(): c for c in (*(f"AU{u}" for u in SIDED_UNITS), *CHANNELS)}
_SINGLE_NAMES = ("neutral", "all")

UNITS = UnitSpace()

# An image file: in quotes, or a path without the grammar's own characters that ends like an image.
_FILE = r'"[^"]+"|[^\s,;:*+="]+\.(?:avif|bmp|gif|jpe?g|jp2|j2k|png|pbm|pgm|ppm|pnm|tiff?|webp)(?![^\s,;:*+="])'
_FILE_PATTERN = re.compile(_FILE, re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Expression:
    """One parsed expression.

    Attributes:
        name: canonical text; parsing it gives the same vector and the same name.
        vector: expression vector of its space, float32, read-only; of action units `(WIDTH,)`, every channel within
            its range.
        provenance: `"published"` or `"derived"` (one word, at any weight; see `Word.provenance`), `"neutral"`,
            `"exemplar"` (one image, at any weight), `"channels"` (settings only) or `"blend"` (any combination). In an
            encoder's space, one word is `"prototype"`.
        word: the only word (or `"neutral"`) of the expression, at any weight, gaze and head aside; None for blends,
            images, action units and a weight of 0.
        weight: the weight of `word`; 1 if `word` is None.
    """

    name: str
    vector: Float[np.ndarray, " width"]
    provenance: str
    word: str | None
    weight: float = 1.0

    @property
    def slug(self) -> str:
        """The name as part of a file name: only `a-z 0-9 _ -`, at most `SLUG_LENGTH` characters, deterministic.

        A decimal point becomes `p`, a minus sign `m`: `joy:0.6` is `joy-0p6`. An image is its file's name without
        folder and suffix. A longer slug is truncated and ends in a hash of the name.
        """
        text = _FILE_PATTERN.sub(lambda file: Path(file[0].strip('"')).stem, self.name)
        text = text.lower().replace("-", "m").replace(".", "p").replace(" + ", "-plus-")
        text = re.sub(r"[^a-z0-9_]", "-", text).strip("-")
        if len(text) > SLUG_LENGTH:
            text = f"{text[: SLUG_LENGTH - 9]}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        return text


def parse_expressions(text: str, space: ExpressionSpace = UNITS) -> list[Expression]:
    """All expressions of a request such as `"joy,0.6*joy + 0.4*surprise,anger/*"`, in the order written.

    An expression that is written twice is returned twice.

    Args:
        text: the request.
        space: turns words and images into vectors; the default knows words and action units, and no images.

    Raises:
        ExpressionError: the text is not in the grammar, a name is unknown, a number is out of range, or the space has
            no vector for it.
    """
    return _Parser(text, space).request()


def check_expressions(text: str) -> None:
    """Checks everything in a request that does not depend on a model.

    Raises:
        ExpressionError: the text is not in the grammar, a word is unknown, a number is out of range, or an image file
            is missing.
    """
    _Parser(text, AnySpace()).request()


def parse_expression(text: str) -> Expression:
    """The only expression in a text of words and action units.

    Raises:
        ExpressionError: as `parse_expressions`, or the text has more than one expression.
    """
    expressions = parse_expressions(text)
    if len(expressions) != 1:
        raise ExpressionError(f"expression '{_excerpt(text)}': stands for {len(expressions)} expressions, expected one")
    return expressions[0]


class _Token(NamedTuple):
    kind: str  # "file", "number", "name", "end", or the character itself
    text: str


_TOKEN = re.compile(
    rf"\s*(?:(?P<file>(?i:{_FILE}))"
    r"|(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]))"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>[,;:*+=/]))"
)


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        # After a word, number or `*` a plus joins terms (`joy +0.4*fear`); elsewhere it is a number's sign.
        joins = bool(tokens) and tokens[-1].kind in ("file", "name", "number", "*")
        match = _TOKEN.match(text, position)
        if match and joins and match["number"] and match["number"].startswith("+"):
            match = re.compile(r"\s*(?P<mark>\+)").match(text, position)
        if match is None:
            rest = text[position:].split()[0]
            raise ExpressionError(f"expression '{_excerpt(text)}': cannot read '{_excerpt(rest)}'")
        kind = match.lastgroup or ""
        tokens.append(_Token(match[kind] if kind == "mark" else kind, match[kind]))
        position = match.end()
    return [*tokens, _Token("end", "end of the text")]


class _Group(NamedTuple):
    words: tuple[str, ...]


class _Image(NamedTuple):
    file: str

    def __str__(self) -> str:
        return self.file if not self.file.startswith('"') and _FILE_PATTERN.fullmatch(self.file) else f'"{self.file}"'


# A word, or an image.
_Face = str | _Image


class _Parser:
    """Recursive descent over the tokens, one method per rule of the grammar."""

    def __init__(self, text: str, space: ExpressionSpace) -> None:
        self.text, self.space = text, space
        self.tokens = _tokenize(text)
        self.at = 0

    def request(self) -> list[Expression]:
        if len(self.tokens) == 1:
            raise ExpressionError("expression '': empty; write a word such as 'joy', or 'all'")
        expressions = self._item()
        while self._peek().kind in (",", ";"):
            self._next()
            expressions += self._item()
        if self._peek().kind != "end":
            self._fail(f"unexpected '{_excerpt(self._peek().text)}'; '+' adds words, ',' or ';' separates expressions")
        return expressions

    def _item(self) -> list[Expression]:
        faces: list[tuple[_Face, float]] = []
        settings: dict[str, float] = {}
        terms = 0
        while True:
            terms += 1
            if self._peek().kind == "name" and self._peek(1).kind == "=":
                self._settings(settings)
            else:
                face, weight = self._weighted()
                if isinstance(face, _Group):
                    if terms > 1 or self._peek().kind == "+":
                        self._fail("'all' and '/*' stand for many words and cannot be part of a blend")
                    return [_build([(name, weight)], {}, self.space) for name in face.words]
                faces.append((face, weight))
            if self._peek().kind != "+":
                return [_build(faces, settings, self.space)]
            self._next()

    def _weighted(self) -> tuple[_Face | _Group, float]:
        weight = None
        if self._peek().kind == "number":
            weight = self._weight()
            if self._peek().kind != "*":
                self._fail(f"'{weight:g}' is no expression; a weight is written '{weight:g}*joy' or 'joy:{weight:g}'")
            self._next()
        name = self._face()
        if self._peek().kind == ":":
            if weight is not None:
                self._fail("two weights for one word; write '0.6*joy' or 'joy:0.6'")
            self._next()
            weight = self._weight()
        return name, 1.0 if weight is None else weight

    def _face(self) -> _Face | _Group:
        token = self._next()
        if token.kind == "file":
            return _Image(token.text.strip('"'))
        if token.kind != "name":
            self._fail(f"a word, a channel or an image was expected, found '{_excerpt(token.text)}'")
        name = token.text.lower()
        path = [name]
        while self._peek().kind == "/":
            self._next()
            part = self._next()
            if part.kind == "*":
                return self._members(path)
            if part.kind != "name":
                break
            path.append(part.text.lower())
        if len(path) > 1 or self.tokens[self.at - 1].kind not in ("name", "*"):
            self._fail("a group of words is written 'joy/*' or 'joy/zest/*'")
        if name == "all":
            return _Group(tuple(vocabulary()))
        if name in _SETTINGS:
            self._fail(f"channel '{_SETTINGS[name]}' needs a value, such as '{_SETTINGS[name]}=0.5'")
        if name != "neutral" and name not in vocabulary():
            if re.fullmatch(r"au[0-9]+[lr]?", name):
                _unknown_channel(token.text)
            following = self._peek().text.lower() if self._peek().kind == "name" else None
            hint = suggestion(name, following, [*_SINGLE_NAMES, *vocabulary(), *DEGREES])
            raise ExpressionError(f"expression '{_excerpt(token.text)}': unknown word{hint}")
        return name

    def _members(self, path: Sequence[str]) -> _Group:
        """The words of a cluster, of a sub-cluster, or of cluster/sub-cluster."""
        words = vocabulary().values()
        if len(path) == 1:
            found = [w.name for w in words if w.cluster == path[0]] or [
                w.name for w in words if w.subcluster == path[0]
            ]
        else:
            found = [w.name for w in words if [w.cluster, w.subcluster] == list(path)]
        if not found:
            groups = dict.fromkeys(g for w in words for g in (w.cluster, w.subcluster, f"{w.cluster}/{w.subcluster}"))
            written = "/".join(path)
            raise ExpressionError(
                f"expression '{_excerpt(written)}/*': unknown cluster{group_suggestion(written, list(groups))}"
            )
        return _Group(tuple(found))

    def _settings(self, settings: dict[str, float]) -> None:
        while True:
            token = self._next()
            self._next()
            name = token.text.lower()
            if name in vocabulary() or name in _SINGLE_NAMES:
                self._fail(f"'=' sets a channel; the strength of a word is written '{name}:0.5'")
            if name not in _SETTINGS:
                _unknown_channel(token.text)
            channel = _SETTINGS[name]
            if channel in settings:
                self._fail(f"'{channel}' is set twice; ';' separates expressions")
            lowest = float(LOWEST[INDEX[channel]]) if channel in DEGREES else 0.0
            settings[channel] = self._number(channel, lowest, 1.0)
            after = [self._peek(i).kind for i in range(3)]
            if after != [",", "name", "="]:
                return
            self._next()

    def _weight(self) -> float:
        return self._number("weight", 0.0, HIGHEST_WEIGHT)

    def _number(self, what: str, lowest: float, highest: float) -> float:
        token = self._next()
        allowed = f"a number from {lowest:g} to {highest:g}"
        if token.kind != "number":
            self._fail(f"{what}: {allowed} was expected, found '{_excerpt(token.text)}'")
        value = float(token.text)
        if not lowest <= value <= highest:
            self._fail(f"{what} {_excerpt(token.text)}: must be {allowed}")
        return value + 0.0  # -0.0 becomes 0.0, so that both have one name

    def _peek(self, ahead: int = 0) -> _Token:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def _next(self) -> _Token:
        token = self._peek()
        self.at += 1
        return token

    def _fail(self, message: str) -> NoReturn:
        raise ExpressionError(f"expression '{_excerpt(self.text)}': {message}")


def _build(faces: Sequence[tuple[_Face, float]], settings: dict[str, float], space: ExpressionSpace) -> Expression:
    """The blend of `faces` with `settings` on top, and its canonical name."""
    vectors = [
        (space.image(face.file) if isinstance(face, _Image) else space.word(face), weight) for face, weight in faces
    ]
    vector = space.blend(vectors, settings)
    vector.setflags(write=False)

    if len(faces) == 1:
        terms = [str(face) if weight == 1 else f"{face}:{_digits(weight)}" for face, weight in faces]
    else:
        terms = [str(face) if weight == 1 else f"{_digits(weight)}*{face}" for face, weight in faces]
    if settings:
        terms.append(",".join(f"{channel}={_digits(value)}" for channel, value in settings.items()))
    first = faces[0] if faces else None
    if len(terms) > 1:
        provenance = "blend"
    elif first is None:
        provenance = "channels"
    elif isinstance(first[0], _Image):
        provenance = "exemplar"
    elif not isinstance(space, UnitSpace):
        provenance = "prototype"
    else:
        provenance = "neutral" if first[0] == "neutral" else vocabulary()[first[0]].provenance
    if first and len(faces) == 1 and settings.keys() <= set(DEGREES):
        face, weight = first
        if isinstance(face, str) and weight > 0:
            return Expression(" + ".join(terms), vector, provenance, face, weight)
    return Expression(" + ".join(terms), vector, provenance, None)


def _unknown_channel(text: str) -> NoReturn:
    sided = " ".join(f"AU{u}" for u in SIDED_UNITS)
    median = " ".join(f"AU{u}" for u in MEDIAN_UNITS)
    allowed = f"{sided} (also one-sided, AU12L or AU12R), {median}, {' '.join(DEGREES)}"
    raise ExpressionError(f"expression '{_excerpt(text)}': unknown channel; allowed: {allowed}")


def _digits(value: float) -> str:
    """The shortest text that reads back as the same number: `0.6`, `1`."""
    return repr(value).removesuffix(".0")


def _excerpt(text: str) -> str:
    """At most 60 characters of the user's text, for a message."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
