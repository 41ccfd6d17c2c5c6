"""`python -m genaffect_jax.sample`: sample the avatar set of one identity, extend a set, or morph between expressions.

python -m genaffect_jax.sample --model out/avatar_tiny --identity seed:7 --expressions joy,sadness,anger --out out/set
python -m genaffect_jax.sample --model out/avatar_tiny --add_to out/set --expressions pride,fear
python -m genaffect_jax.sample --model out/avatar_tiny --identity seed:7 --morph joy sadness --out out/morph
python -m genaffect_jax.sample --model out/sd35 --identity face.png --lora ink.safetensors:0.8 --out out/ink
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

from genaffect_jax import cli
from genaffect_jax.checkpoints.manager import LATEST
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import SamplingConfig
from genaffect_jax.config.file_name import FileName
from genaffect_jax.errors import INTERRUPTED, ConfigError, require
from genaffect_jax.expressions.grammar import Expression, check_expressions
from genaffect_jax.expressions.interpolation import morph_expressions
from genaffect_jax.inference.avatar_set import AvatarSet
from genaffect_jax.inference.references import MOST_REFERENCES
from genaffect_jax.inference.set_folder import check_output
from genaffect_jax.io.package_files import DEFAULT_MODEL
from genaffect_jax.io.progress import chunk_bar
from genaffect_jax.parallel.xla import use_compilation_cache
from genaffect_jax.pipeline import Pipeline

# Options of consistent attention, which have no effect without shared tokens.
SHARING = (
    "anchors",
    "anchor_expressions",
    "consistency_layers",
    "consistency_start",
    "consistency_end",
    "shared_mask",
    "kv_cache",
)
# Bytes of a set for every pixel of its images: each as a PNG that cannot be compressed, and once more in the sheet.
ROOM_PER_PIXEL = 8
DEFAULT_EXPRESSIONS = "joy,sadness,anger,fear,surprise,disgust,neutral"


@dataclass(frozen=True, kw_only=True)
class SetArguments:
    """What a set is made of; the settings of sampling follow in `Arguments`."""

    model: Path = Path(DEFAULT_MODEL)
    """Run folder of a training, folder of a released model, or package:NAME. Default: the model of this package."""
    identity: tuple[FileName, ...] = ()
    """One to four images of one person: image files, or seed:N for the procedural avatar number N. Required, except
    with add_to."""
    expressions: str = ""
    """Expressions: words, blends (0.6*joy + 0.4*surprise), action units (AU6=0.5,AU12=0.9), clusters, all, and image
    files that show one (face.png; face.png:1.3 exaggerates it, face.png:0.5 softens it). Default: six emotions and
    neutral."""
    out: Path | None = None
    """Folder for sheet.png, one PNG per image, and set.json. Required, except with add_to."""
    checkpoint: str = LATEST
    """Checkpoint to sample from: latest, best (by the loss on held-out people), or the number of a step."""
    lora: tuple[FileName, ...] = ()
    """LoRA files of other programs, each with its weight after a colon (style.safetensors:0.8; default 1), all added to
    the model."""
    expression_encoder: FileName | None = None
    """Encoder that reads expressions from image files: package:expression_avatar, a weight file, or the .json of an
    ONNX encoder. Default: the model's own."""
    align: Literal["none", "face"] | None = None
    """Treatment of image files: none takes the centre square; face detects the face and moves it to the place it has in
    aligned training images. Default: as the training images were treated. Drawn characters need none."""
    face_models: Path | None = None
    """Folder of an insightface model pack (.onnx files), or an insightface root with one pack; needed to align."""
    face_index: int = 0
    """Face to use in the identity's images, counted from the largest, 0. Image files among the expressions always use
    the largest."""
    anchor_expressions: str = ""
    """Expressions of the anchors, part of the set or not. Default: the first expressions of the set, as many as
    anchors. Needs consistency above 0."""
    add_to: Path | None = None
    """Folder of an earlier set: expressions are added to it, with its person, settings and anchors."""
    morph: tuple[str, str] | None = None
    """Two expressions: samples frames images on the way from the first to the second, and an animation of them."""
    frames: int = 16
    """Images of a morph, at least 2."""
    animation: Literal["gif", "webp"] = "gif"
    """File type of a morph's animation."""


# Dataclasses take the fields of the last base first, and options are listed in that order.
@dataclass(frozen=True, kw_only=True)
class Arguments(SamplingConfig, SetArguments):
    """Sample the avatar set of one identity."""

    def check(self) -> None:
        """Raises ConfigError for options that do not go together."""
        if self.add_to is not None:
            own = dataclasses.asdict(RunDir.of_model(self.model).sampling_defaults().settings())
            changed = [name for name, value in own.items() if getattr(self, name) != value]
            changed += [n for n in ("identity", "out", "morph", "anchor_expressions") if getattr(self, n)]
            if changed:
                raise ConfigError("the set of add_to decides this; leave it out", field=changed[0])
            if not self.expressions:
                raise ConfigError("missing: what to add to the set", field="expressions")
            return
        for name in ("identity", "out"):
            if not getattr(self, name):
                raise ConfigError("missing (only add_to does without it)", field=name)
        if self.morph is not None and (self.expressions or self.anchor_expressions):
            raise ConfigError(
                "gives all expressions of the set; leave expressions and anchor_expressions out", field="morph"
            )
        if self.consistency == 0:
            idle = [n for n in SHARING if getattr(self, n) != getattr(type(self), n)]
            if idle:
                raise ConfigError("has no effect without shared tokens; set consistency above 0", field=idle[0])
        require(self.frames >= 2, "frames", self.frames, "must be at least 2")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and samples; returns the exit status."""
    arguments = cli.parse_for_model(Arguments, argv)

    def work(console: Console) -> bool:
        folder, avatars = run(arguments, console)
        console.print(f"{len(avatars.images)} images in {folder} (see sheet.png and set.json)")
        return True

    status = cli.run(work)
    if status == INTERRUPTED:
        print("interrupted; nothing was written, or all of the set", file=sys.stderr)
    return status


def run(arguments: Arguments, console: Console) -> tuple[Path, AvatarSet]:
    """Samples what is asked for and saves it; returns the folder and the set.

    Raises:
        GenAffectError: see `Pipeline.load` and `Pipeline.__call__`.
    """
    arguments.check()
    # Everything that the command line alone decides is checked before the model is loaded.
    for text in (arguments.expressions, arguments.anchor_expressions, *(arguments.morph or ())):
        if text:
            check_expressions(text)
    target = "out" if arguments.add_to is None else "add_to"
    folder: Path = getattr(arguments, target)
    earlier = None if arguments.add_to is None else AvatarSet.load(arguments.add_to)
    check_output(folder, target)
    use_compilation_cache()
    pipeline = Pipeline.load(
        arguments.model,
        arguments.expression_encoder,
        align=arguments.align,
        face_models=arguments.face_models,
        face_index=arguments.face_index,
        checkpoint=arguments.checkpoint,
        loras=[parse_lora(text) for text in arguments.lora],
    )
    console.print(f"model {pipeline.name}", soft_wrap=True, highlight=False)
    wanted, anchors = _expressions(pipeline, arguments)
    images = len(wanted) + MOST_REFERENCES + (0 if earlier is None else len(earlier.images))
    check_output(folder, target, room=ROOM_PER_PIXEL * images * pipeline.config.model.image_size**2)
    with chunk_bar("sampling", console) as progress:
        avatars = _sample(pipeline, arguments, earlier, wanted, anchors, progress, partial(_print_line, console))
    saved = avatars.save(folder, None if arguments.morph is None else arguments.animation)
    if len(saved.images) > len(avatars.images):
        others = len(saved.images) - len(avatars.images)
        console.print(f"{folder}: {others} images that another process added meanwhile are kept", soft_wrap=True)
    return folder, saved


def parse_lora(text: str) -> tuple[str, float]:
    """File and weight of one LoRA: `a.safetensors:0.8`, or `a.safetensors` with weight 1."""
    path, colon, weight = text.rpartition(":")
    if colon and not os.path.exists(text):
        with suppress(ValueError):
            return path, float(weight)
    return text, 1.0


def _expressions(pipeline: Pipeline, arguments: Arguments) -> tuple[Sequence[Expression], Sequence[Expression]]:
    """The expressions to sample, and those of the anchors if they are given."""
    if arguments.morph is not None:
        first, last = (pipeline.parse(text) for text in arguments.morph)
        frames = morph_expressions(first, last, arguments.frames)
        return frames, (frames[0], frames[-1])
    wanted = pipeline.parse(arguments.expressions or DEFAULT_EXPRESSIONS)
    return wanted, pipeline.parse(arguments.anchor_expressions) if arguments.anchor_expressions else ()


def _sample(
    pipeline: Pipeline,
    arguments: Arguments,
    earlier: AvatarSet | None,
    wanted: Sequence[Expression],
    anchors: Sequence[Expression],
    progress: Callable[[int, int], None],
    tell: Callable[[str], object],
) -> AvatarSet:
    if earlier is not None:
        return pipeline.add(earlier, wanted, progress, tell)
    settings = SamplingConfig(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(SamplingConfig)})
    if arguments.morph is not None:
        settings = dataclasses.replace(settings, set_seed_noise="shared")
    return pipeline(
        arguments.identity, wanted, settings=settings, anchor_expressions=anchors, progress=progress, tell=tell
    )


def _print_line(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
