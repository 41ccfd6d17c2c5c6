"""Facial expressions as text.

    request = item { ("," | ";") item }                         joy, sadness:0.5; face.png
    item    = group [":" number] | number "*" group | term { "+" term }
    group   = "all" | name "/*" | name "/" name "/*"            joy/* (cluster), zest/* or joy/zest/* (sub-cluster)
    term    = face [":" number] | number "*" face | setting { "," setting }
    face    = word | image file                                 joy, neutral, face.png, "any path"
    setting = channel "=" number                                AU12=0.5 (both sides), AU12L=0.5 (the person's left)

A blend is `neutral + sum of weight * (face - neutral)`, with weights from 0 to 2. Action units are clipped to their
ranges; then the settings replace channels, one-sided settings last. A group stands for each of its words.
"""

import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

NAME = r"[A-Za-z_][A-Za-z0-9_]*"
FILE = r'(?i:"[^"]+"|[^\s,;:*+="]+\.(?:avif|bmp|gif|jpe?g|jp2|j2k|png|pbm|pgm|ppm|pnm|tiff?|webp)(?![^\s,;:*+="]))'
NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.])"
FACE = rf"(?P<file>{FILE}) | (?P<name>{NAME} (?: \s*/\s* (?: {NAME} \s*/\s* )? \* )? )"
WEIGHTED = rf"(?: (?P<before>{NUMBER}) \s*\*\s* )? (?: {FACE} ) (?(before) | (?: \s*:\s* (?P<after>{NUMBER}) )? )"
SETTINGS = rf"(?P<settings> {NAME} \s*=\s* {NUMBER} (?: \s*,\s* {NAME} \s*=\s* {NUMBER} )* )"
TERM = re.compile(rf"\s* (?: {SETTINGS} | {WEIGHTED} ) \s* (?P<end> [+,;] | \Z )", re.VERBOSE)


@dataclass(frozen=True, eq=False)
class Expression:
    name: str  # canonical text, which gives the same expression
    vector: np.ndarray  # float32 [W]
    word: str | None  # the only word of the expression, gaze and head aside


class GenAffectExpressions(ModelMixin, ConfigMixin):
    """The words of a model with their vectors and prompt embeddings.

    Vectors of the space "units" are values of `channels`, from 0 or (`degrees`) -1 to 1; those of the space "encoder"
    are outputs of a face encoder. `words` have name, cluster, subcluster and vector: a list, {channel: value} or None.
    `shape` is the tokens of a prompt, their width and that of the pooled embedding. `source` is not used here.
    """

    @register_to_config
    def __init__(self, space, words, neutral, channels, degrees, template, plain, negative, prompts, shape, source):
        super().__init__()
        self.settable = {name.lower(): name for channel in channels for name in (channel.rstrip("LR"), channel)}
        self.vectors = {"neutral": neutral} | {word["name"]: word["vector"] for word in words}
        self.groups = {}
        for pattern in ("all", "{subcluster}/*", "{cluster}/*", "{cluster}/{subcluster}/*"):
            members = {}  # those of a cluster replace those of a sub-cluster with the same name
            for word in words:
                members.setdefault(pattern.format(**word), []).append(word["name"])
            self.groups |= members
        self.register_buffer("prompt_embeds", torch.zeros(len(prompts), *shape[:2]))
        self.register_buffer("pooled_prompt_embeds", torch.zeros(len(prompts), shape[2]))

    def parse(self, text: str, read_image=None) -> list[Expression]:
        """The expressions of a text; `read_image(path)` gives the vector of an image. ValueError if it is refused."""
        expressions, faces, settings, at, end = [], [], {}, 0, ","
        while end:
            term = TERM.match(text, at)
            if term is None:
                raise ValueError(f"expression {text[at:].strip()!r}: not in the grammar")
            at, end = term.end(), term["end"]
            if term["settings"]:
                for name, value in re.findall(rf"({NAME})\s*=\s*({NUMBER})", term["settings"]):
                    channel = self.settable.get(name.lower())
                    if channel is None or channel in settings:
                        raise ValueError(f"expression {name!r}: no channel of this model, or set twice")
                    settings[channel] = _number(value, -1 if channel in self.config.degrees else 0, 1)
            else:
                file = re.sub(rf'"({FILE})"', r"\1", term["file"] or "")  # without needless quotes
                weight = _number(term["before"] or term["after"] or "1", 0, 2)
                faces.append((file or "".join(term["name"].lower().split()), weight))
            if end != "+":
                words = self.groups.get(faces[0][0], []) if len(faces) == 1 and not settings else []
                blends = [[(word, faces[0][1])] for word in words] or [faces]
                expressions += [self._blend(blend, settings, read_image) for blend in blends]
                faces, settings = [], {}
        return expressions

    def noise_ids(self, expressions: list[Expression]) -> list[int]:
        """Numbers that, with the seed, decide the noise: the same for a vector in every set, repetitions numbered."""
        keys = [np.round(expression.vector, 4).astype("<f4").tobytes() for expression in expressions]
        return [zlib.crc32(key + bytes([keys[:i].count(key) % 256])) & 0x7FFFFFFF for i, key in enumerate(keys)]

    def embed(self, expressions: list[Expression], negative=False) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Embeddings [E, T, C] and [E, D] of the expressions' prompts or of the negative one; None without prompts."""
        if not self.config.prompts:
            return None
        texts = [self.config.template.replace("{word}", e.word) if e.word else self.config.plain for e in expressions]
        rows = [self.config.prompts.index(self.config.negative if negative else text) for text in texts]
        return self.prompt_embeds[rows], self.pooled_prompt_embeds[rows]

    def _blend(self, faces, settings, read_image):
        channels, degrees, units = self.config.channels, self.config.degrees, self.config.space == "units"
        total = sum((w * self._vector(f, read_image).astype("f4" if units else "f8") for f, w in faces), np.zeros(1))
        rest = 1.0 - sum(weight for _, weight in faces)  # the weight of the neutral face; 0 needs none
        total = total + (rest * self._vector("neutral") if abs(rest) > 1e-6 else 0.0)
        vector = (np.clip(total, [-(c in degrees) for c in channels], 1) if units else total).astype(np.float32)
        for name in sorted(settings, key=lambda name: name in channels):
            vector[[channel in (name, name + "L", name + "R") for channel in channels]] = settings[name]
        weighted = "{1}*{0}" if len(faces) > 1 else "{0}:{1}"
        terms = [face if weight == 1 else weighted.format(face, weight) for face, weight in faces]
        terms += [",".join(f"{name}={value}" for name, value in settings.items())] if settings else []
        is_word = len(faces) == 1 and faces[0][0] in self.vectors and faces[0][1] > 0 and settings.keys() <= {*degrees}
        return Expression(" + ".join(terms), vector, faces[0][0] if is_word else None)

    def _vector(self, face, read_image=None):
        vector = read_image(face.strip('"')) if read_image and re.fullmatch(FILE, face) else self.vectors.get(face)
        if vector is None:
            raise ValueError(f"expression {face!r}: not known to this model, or a group in a blend")
        vector = [vector.get(name, 0.0) for name in self.config.channels] if isinstance(vector, dict) else vector
        return np.asarray(vector, np.float32)


def _number(text, lowest, highest):
    value = float(text)
    if not lowest <= value <= highest:
        raise ValueError(f"expression {text!r}: must be a number from {lowest} to {highest}")
    return int(value) if value.is_integer() else value  # names say 1 for 1.0 and 0 for -0.0
