"""Which references a trained model warns about: people that it has never seen, and images of other kinds.

    python benchmarks/unfamiliar_identities.py --model out/avatar_tiny
    python benchmarks/unfamiliar_identities.py --model out/avatar_tiny --images build/python_avatars

Prints, for every kind, the share beyond the limit, the smallest, median and largest distance, and the area under the
ROC curve against the unseen people. `--images` adds image files of any folder as a kind.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float, UInt8
from PIL import Image

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.expressions.action_units import neutral
from genaffect_jax.expressions.grammar import parse_expressions
from genaffect_jax.pipeline import Pipeline

Pixels = UInt8[np.ndarray, "S S 3"]
_FIRST = 1_000_000


def avatars(people: int, size: int) -> list[Pixels]:
    """Neutral procedural avatars that no preset trains on."""
    return [render(sample_identity(_FIRST + i), neutral(), size) for i in range(people)]


def expressive(people: int, size: int) -> list[Pixels]:
    """Other such people, each with a random word."""
    rng, words = np.random.default_rng(0), parse_expressions("all")
    return [
        render(sample_identity(_FIRST + 10_000 + i), words[rng.integers(len(words))].vector, size)
        for i in range(people)
    ]


def texture(rng: np.random.Generator, size: int) -> Pixels:
    """Noise with the spectrum of photographs."""
    total = np.zeros((size, size, 3))
    for cells in (2, 4, 8, 16, 32, 64, 128):
        for channel in range(3):
            noise = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
            total[..., channel] += np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC)) / cells**0.8
    return (total / total.std() * 50 + 128).clip(0, 255).astype(np.uint8)


def flat_face(rng: np.random.Generator, size: int) -> Pixels:
    """A disc of skin on white, with two dots and a bar."""
    image = np.full((size, size, 3), 255, np.uint8)
    y, x = np.mgrid[:size, :size] / size
    skin = np.array([[255, 219, 180], [237, 185, 138], [174, 93, 41], [97, 67, 53]])[rng.integers(4)]
    middle_x, middle_y, radius = 0.5 + rng.uniform(-0.06, 0.06), 0.5 + rng.uniform(-0.06, 0.06), rng.uniform(0.22, 0.38)
    image[(x - middle_x) ** 2 + (y - middle_y) ** 2 < radius**2] = skin
    for side in (-1, 1):
        eye = (x - middle_x - side * radius / 3) ** 2 + (y - middle_y + radius / 4) ** 2
        image[eye < 0.024**2] = 0
    image[(abs(y - middle_y - radius / 2) < 0.02) & (abs(x - middle_x) < radius / 3)] = (150, 30, 30)
    return image


def zoomed(image: Pixels, factor: float) -> Pixels:
    """The middle of an image, magnified; below 1, the image made smaller on its own corner's colour."""
    size, inner = len(image), round(len(image) / factor)
    if factor >= 1:
        start = (size - inner) // 2
        middle = image[start : start + inner, start : start + inner]
        return np.asarray(Image.fromarray(middle).resize((size, size), Image.Resampling.BICUBIC))
    small = round(size * factor)
    canvas, start = np.broadcast_to(image[0, 0], image.shape).copy(), (size - small) // 2
    resized = Image.fromarray(image).resize((small, small), Image.Resampling.BICUBIC)
    canvas[start : start + small, start : start + small] = np.asarray(resized)
    return canvas


def jpeg(image: Pixels) -> Pixels:
    """The image after a JPEG file of quality 50."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def kinds(size: int, count: int) -> dict[str, list[Pixels]]:
    """Images of other kinds than the training's, and avatars that are changed."""
    rng = np.random.default_rng(1)
    plain = [render(sample_identity(_FIRST + 20_000 + i), neutral(), size) for i in range(count)]
    changes: dict[str, Callable[[Pixels], Pixels]] = {
        "avatar, JPEG of quality 50": jpeg,
        "avatar, mirrored": lambda image: image[:, ::-1],
        "avatar, magnified 1.1": lambda image: zoomed(image, 1.1),
        "avatar, magnified 1.25": lambda image: zoomed(image, 1.25),
        "avatar, magnified 1.5": lambda image: zoomed(image, 1.5),
        "avatar, magnified 2": lambda image: zoomed(image, 2.0),
        "avatar, smaller 0.8": lambda image: zoomed(image, 0.8),
        "avatar, smaller 0.67": lambda image: zoomed(image, 0.67),
        "avatar, moved by 5 %": lambda image: np.roll(image, round(0.05 * size), 1),
        "avatar, moved by 12 %": lambda image: np.roll(image, round(0.125 * size), 1),
        "avatar, moved by 25 %": lambda image: np.roll(image, round(0.25 * size), 1),
        "avatar, upside down": lambda image: image[::-1],
        "avatar, lying": lambda image: np.rot90(image),
        "avatar, colours inverted": lambda image: 255 - image,
    }
    return {
        "one grey": [np.full((size, size, 3), level, np.uint8) for level in np.linspace(0, 255, count).round()],
        "one colour": [np.broadcast_to(rng.integers(0, 256, 3), (size, size, 3)).astype(np.uint8) for _ in plain],
        "noise": [rng.integers(0, 256, (size, size, 3)).astype(np.uint8) for _ in plain],
        "texture like a photograph's": [texture(rng, size) for _ in plain],
        "disc with dots": [flat_face(rng, size) for _ in plain],
        **{name: [np.ascontiguousarray(change(image)) for image in plain] for name, change in changes.items()},
    }


def row(name: str, far: Float[np.ndarray, " n"], usual: Float[np.ndarray, " m"]) -> str:
    """One row of the table."""
    area = (far[:, None] > usual).mean()
    return (
        f"| {name} | {len(far)} | {(far > 1).sum()} | {far.min():.2f} | {np.median(far):.2f} | {far.max():.2f} "
        f"| {area:.3f} |"
    )


def main(model: Path, images: Path | None = None, people: int = 200, count: int = 40) -> None:
    """Measures distances and prints a table.

    Args:
        model: Run folder with latent_range.safetensors.
        images: Folder whose image files are one more kind.
        people: Unseen neutral avatars; half as many with a word.
        count: Images of every other kind.
    """
    pipeline = Pipeline.load(model)
    check, size = pipeline.reference_check, pipeline.config.model.image_size
    if check is None:
        raise SystemExit(f"{model}: has no latent range")

    def distances(found: list[Pixels]) -> Float[np.ndarray, " n"]:
        return np.array([check(image[None])[0] for image in found])

    usual = distances(avatars(people, size))
    print("| images | number | beyond the limit | smallest | median | largest | AUC |\n|---|---|---|---|---|---|---|")
    print(row("unseen people, neutral", usual, usual))
    print(row("unseen people, a word", distances(expressive(people // 2, size)), usual))
    if images is not None:
        files = sorted(file for file in images.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
        print(row(str(images), distances([pipeline.reference(file) for file in files]), usual))
    for name, found in kinds(size, count).items():
        print(row(name, distances(found), usual))
    begun = time.perf_counter()
    for _ in range(20):
        check(np.zeros((1, size, size, 3), np.uint8))
    print(f"\nmeasuring one reference: {(time.perf_counter() - begun) / 20 * 1e3:.1f} ms")


if __name__ == "__main__":
    tyro.cli(main)
