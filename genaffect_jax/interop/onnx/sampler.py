"""Samples a set with onnxruntime and NumPy alone: `python sampler.py FACE.png joy,sadness OUT` (needs Pillow, too).

    sample = Sampler(folder)
    images = sample(references, sample.vectors(["joy", "sadness"]))  # uint8 [2, S, S, 3]

`onnx.json` beside this file describes every input and output of the three graphs.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

# The settings of a folder whose onnx.json says nothing of them.
EARLIER = {"steps": 24, "solver": "euler", "guidance_identity": 1.0, "guidance_expression": 1.5, "consistency": 0.0}


class Prompts(NamedTuple):
    """Text embeddings for a model that reads prompts."""

    text: np.ndarray
    """Of each image, [E, T, C]."""
    pooled: np.ndarray
    """Of each image, [E, P]."""
    negative_text: np.ndarray
    """Of the branch without conditions, [T, C]."""
    negative_pooled: np.ndarray
    """Of the branch without conditions, [P]."""


class Sampler:
    """The three graphs of a folder as one function.

    Args:
        folder: the folder.
        providers: execution providers of onnxruntime; None for all of this installation.
        options: session options of onnxruntime, such as the number of threads.
    """

    def __init__(
        self,
        folder: Path,
        providers: Sequence[str] | None = None,
        options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.description: dict[str, Any] = json.loads((self.folder / "onnx.json").read_text())
        for graph in self.description["graphs"].values():
            for name in (graph["file"], graph.get("weights", graph["file"])):
                if not (self.folder / name).is_file():
                    raise FileNotFoundError(f"{self.folder / name}: no such file; {graph['file']} needs it")
        providers = list(providers or onnxruntime.get_available_providers())
        self.conditions, self.denoiser, self.decoder = (
            onnxruntime.InferenceSession(str(self.folder / f"{name}.onnx"), options, providers=providers)
            for name in ("conditions", "denoiser", "decoder")
        )

    def sigmas(self, steps: int) -> np.ndarray:
        """Noise levels from 1 to 0, float32 [steps + 1]; those of diffusers' FlowMatchEulerDiscreteScheduler."""
        shift = self.description["sampling"]["shift"]

        def shifted(level: Any) -> Any:
            return shift * level / (1 + (shift - 1) * level)

        levels = np.linspace(shifted(1.0), shifted(0.001), steps)
        return np.append(shifted(levels), 0).astype(np.float32)

    def vectors(self, words: Sequence[str]) -> np.ndarray:
        """Expression vectors of words, float32 [E, W], in the order of the channels in `expressions/config.json`."""
        found = json.loads((self.folder / "expressions" / "config.json").read_text())
        known = {word["name"]: word["vector"] for word in found["words"]} | {"neutral": found["neutral"]}
        if unknown := [word for word in words if known.get(word) is None]:
            raise ValueError(f"words {unknown}: this model knows {', '.join(sorted(known))}")
        rows = []
        for word in words:
            vector = known[word]
            rows.append([vector.get(c, 0) for c in found["channels"]] if isinstance(vector, dict) else vector)
        return np.array(rows, np.float32)

    def latents(
        self,
        references: np.ndarray,
        vectors: np.ndarray,
        noise: np.ndarray,
        steps: int | None = None,
        guidance_identity: float | None = None,
        guidance_expression: float | None = None,
        prompts: Prompts | None = None,
        identity_scale: float | Sequence[float] = 1.0,
        expression_scale: float | Sequence[float] = 1.0,
    ) -> np.ndarray:
        """Clean latents of one person's set, float32 [E, c, h, w]; arguments as in `__call__`."""
        usual = {**EARLIER, **self.description["sampling"].get("defaults", {})}
        steps = usual["steps"] if steps is None else steps
        g_id = usual["guidance_identity"] if guidance_identity is None else guidance_identity
        g_ex = usual["guidance_expression"] if guidance_expression is None else guidance_expression
        for setting, here in (("solver", "euler"), ("consistency", 0.0)):
            alone = setting == "consistency" and len(vectors) == 1  # an only image shares with no other
            if usual[setting] != here and not alone:
                warnings.warn(
                    f"the model's own {setting} is {usual[setting]!r}, which is not here: these are the images of "
                    f"{setting} {here!r}",
                    stacklevel=2,
                )
        # v0 + g_id (v_id - v0) + g_ex (v_id,ex - v_id), by branch: identity dropped, expression dropped, weight.
        branches = [(True, True, 1 - g_id), (False, True, g_id - g_ex), (False, False, g_ex)]
        branches = [branch for branch in branches if branch[2] != 0]
        weights = np.array([weight for _, _, weight in branches], np.float32)
        faces = np.moveaxis(references, -1, 1).astype(np.float32) / np.float32(127.5) - 1
        drops = np.array([branch[:2] for branch in branches])
        given = dict(zip(("drop_identity", "drop_expression"), drops.T, strict=True))
        found = self.conditions.run(None, {"references": faces, "vectors": vectors.astype(np.float32), **given})
        constant = dict(zip((output.name for output in self.conditions.get_outputs()), found, strict=True))
        layers = len(constant["identity_keys"])
        for name, scale in (("identity_scale", identity_scale), ("expression_scale", expression_scale)):
            constant[name] = np.broadcast_to(np.asarray(scale, np.float32), (layers,))
        if prompts is not None:
            for name, own, negative in (
                ("text", prompts.text, prompts.negative_text),
                ("pooled", prompts.pooled, prompts.negative_pooled),
            ):
                of_branches = [np.broadcast_to(negative, own.shape) if a and b else own for a, b, _ in branches]
                constant[name] = np.concatenate(of_branches).astype(np.float32)
        latents, sigmas = noise.astype(np.float32), self.sigmas(steps)
        for sigma, following in pairwise(sigmas):
            noisy = np.concatenate([latents] * len(branches))
            levels = np.full(len(noisy), sigma)
            (velocity,) = self.denoiser.run(None, {"latents": noisy, "sigma": levels, **constant})
            guided = np.tensordot(weights, velocity.reshape(len(branches), *latents.shape), 1)
            latents = latents + (following - sigma) * guided
        return latents

    def __call__(
        self,
        references: np.ndarray,
        vectors: np.ndarray,
        noise: np.ndarray | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> np.ndarray:
        """Images of one person, uint8 [E, S, S, 3].

        Args:
            references: uint8 [R, S, S, 3], images of the person.
            vectors: float [E, W], expression vectors.
            noise: float [E, c, h, w], where sampling begins; None draws it with NumPy from the seed.
            seed: seed of the noise.
            settings: steps, guidance_identity, guidance_expression (the model's own where they are not given), prompts
                (needed by models that read prompts), identity_scale and expression_scale (one number, or one per
                block).
        """
        if noise is None:
            shape = next(i.shape for i in self.denoiser.get_inputs() if i.name == "latents")[1:]
            noise = np.random.default_rng(seed).standard_normal((len(vectors), *shape), np.float32)
        latents = self.latents(references, vectors, noise, **settings)
        images = np.concatenate([self.decoder.run(None, {"latents": latent[None]})[0] for latent in latents])
        return np.moveaxis(np.round((images + 1) * 127.5).astype(np.uint8), 1, -1)


# Pillow's Image.Transpose of each EXIF orientation but 1.
MOVES = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def upright(image: Any) -> Any:
    """The image turned as its EXIF orientation says; no other tag is read, so that a broken one does not matter."""
    image.load()  # Pillow turns a TIFF here, and takes the tag away
    try:
        orientation = image.getexif().get(274, 1)
    except Exception:  # no EXIF block that can be read: Pillow raises errors of any class
        orientation = 1
    return image if orientation not in MOVES else image.transpose(MOVES[orientation])


def main(face: str, words: str, out: str) -> None:
    """Writes one PNG per word, of the person in an image file."""
    from PIL import Image, ImageOps

    sample = Sampler(Path(__file__).resolve().parent)
    side = next(i.shape for i in sample.conditions.get_inputs() if i.name == "references")[-1]
    if any(i.name == "text" for i in sample.denoiser.get_inputs()):
        sys.exit("this model reads prompts: call Sampler with the embeddings in expressions/")
    image = Image.open(face)
    if image.mode[0] in "IF":
        sys.exit(f"{face}: grey of more than 8 bits; convert it to 8 bits first")
    image = upright(image).convert("RGB")
    square = np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS))
    names = [word.strip() for word in words.split(",")]
    Path(out).mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(names, sample(square[None], sample.vectors(names)), strict=True):
        Image.fromarray(pixels).save(Path(out) / f"{name}.png")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
