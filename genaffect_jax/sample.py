"""`python -m genaffect_jax.sample`: draw the avatar set of one identity, add to a set, or morph between expressions.

python -m genaffect_jax.sample --model out/avatar_tiny --identity seed:7 --expressions joy,sadness,anger --out out/set
python -m genaffect_jax.sample --model out/avatar_tiny --add_to out/set --expressions pride,fear
python -m genaffect_jax.sample --model out/avatar_tiny --identity seed:7 --morph joy sadness --out out/morph
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from genaffect_jax import cli
from genaffect_jax.checkpoints.manager import LATEST
from genaffect_jax.config import SamplingConfig
from genaffect_jax.errors import INTERRUPTED, ConfigError
from genaffect_jax.expressions.grammar import check_expressions
from genaffect_jax.expressions.interpolation import morph_expressions
from genaffect_jax.inference.avatar_set import AvatarSet, check_output
from genaffect_jax.parallel.xla import use_compilation_cache
from genaffect_jax.pipeline import Pipeline

# Options about what images share.
SHARING = (
    "anchors",
    "anchor_expressions",
    "consistency_layers",
    "consistency_start",
    "consistency_end",
    "shared_mask",
    "kv_cache",
)
DEFAULT_EXPRESSIONS = "joy,sadness,anger,fear,surprise,disgust,neutral"


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplingConfig):
    """Draw the avatar set of one identity."""

    model: Path
    """Run folder of a training."""
    checkpoint: str = LATEST
    """Which of its checkpoints draws: latest, best (on held-out people), or the number of a step."""
    identity: tuple[str, ...] = ()
    """One to four images of one person: image files, or seed:N for the procedural avatar number N."""
    out: Path | None = None
    """Folder for sheet.png, one PNG per image, and set.json."""
    expressions: str = ""
    """Expressions: words, blends (0.6*joy + 0.4*surprise), action units (AU6=0.5,AU12=0.9), clusters, all, and images
    that show one (face.png; face.png:1.3 exaggerates it, face.png:0.5 softens it). Left out: six emotions, neutral."""
    expression_encoder: str | None = None
    """What reads expressions from images: package:expression_avatar, a weight file, or the .json of an ONNX encoder;
    else the model's own."""
    align: Literal["none", "face"] | None = None
    """What is done with image files: none takes the middle square, face finds the face and brings it into the place
    it has in aligned training images; left out, what the model was trained on. Drawn characters need none."""
    face_models: Path | None = None
    """Folder of an insightface model pack (.onnx files), or an insightface root with one pack, for --align face."""
    face_index: int = 0
    """Which face of an identity's images, counted from the largest, 0; expressions' images show their largest."""
    anchor_expressions: str = ""
    """Expressions that all images look at, in the set or not; left out: the first --anchors of the set. Needs
    --consistency above 0, as all options about sharing do."""
    add_to: Path | None = None
    """Folder of an earlier set: --expressions are added to it, with its person, settings and anchors."""
    morph: tuple[str, str] | None = None
    """Two expressions: draws --frames images from the first to the second, and an animation of them."""
    frames: int = 16
    """Images of a morph, at least 2."""
    animation: Literal["gif", "webp"] = "gif"
    """File type of a morph."""

    def check(self) -> None:
        """Raises ConfigError for options that do not go together."""
        if self.add_to is not None:
            changed = [f.name for f in dataclasses.fields(SamplingConfig) if getattr(self, f.name) != f.default]
            changed += [n for n in ("identity", "out", "morph", "anchor_expressions") if getattr(self, n)]
            if changed:
                raise ConfigError(f"--{changed[0]}: the set of --add_to decides this; leave it out")
            if not self.expressions:
                raise ConfigError("--add_to: needs --expressions, what to add")
            return
        for name in ("identity", "out"):
            if not getattr(self, name):
                raise ConfigError(f"--{name}: missing (only --add_to does without)")
        if self.morph is not None and (self.expressions or self.anchor_expressions):
            raise ConfigError(
                "--morph: gives all expressions of the set; leave --expressions and --anchor_expressions out"
            )
        if self.consistency == 0:
            idle = [n for n in SHARING if getattr(self, n) != getattr(type(self), n)]
            if idle:
                raise ConfigError(f"--{idle[0]}: means nothing unless images share; give --consistency above 0")
        if self.frames < 2:
            raise ConfigError(f"--frames {self.frames}: must be at least 2")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and draws; returns the exit status."""

    def work(console: Console) -> bool:
        # Inside, because a setting that is not allowed is an error of the class that holds it.
        arguments = tyro.cli(Arguments, args=argv, use_underscores=True, prog="python -m genaffect_jax.sample")
        _sample(arguments, console)
        return True

    status = cli.run(work)
    if status == INTERRUPTED:
        print("interrupted; nothing was written", file=sys.stderr)
    return status


def _sample(arguments: Arguments, console: Console) -> None:
    arguments.check()
    # Everything that the command line alone decides is checked before the model is loaded.
    for text in (arguments.expressions, arguments.anchor_expressions, *(arguments.morph or ())):
        if text:
            check_expressions(text)
    if arguments.out is not None:
        check_output(arguments.out)
    use_compilation_cache()
    folder, avatars = _draw(arguments, console)
    console.print(f"{len(avatars.images)} images in {folder} (see sheet.png and set.json)")


def _draw(arguments: Arguments, console: Console) -> tuple[Path, AvatarSet]:
    """Draws what is asked for and saves it; the folder and the set."""
    earlier = None if arguments.add_to is None else AvatarSet.load(arguments.add_to)
    pipeline = Pipeline.load(
        arguments.model,
        arguments.expression_encoder,
        align=arguments.align,
        face_models=arguments.face_models,
        face_index=arguments.face_index,
        checkpoint=arguments.checkpoint,
    )
    console.print(f"model {pipeline.name}", soft_wrap=True, highlight=False)
    # Images come in chunks; the spinner shows that one is on its way.
    columns = (
        SpinnerColumn(),
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    settings = SamplingConfig(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(SamplingConfig)})
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if not console.is_terminal:  # a log file gets plain lines instead of a bar
                console.print(f"drawn {done}/{total}")

        if earlier is not None:
            avatars = pipeline.add(earlier, arguments.expressions, progress)
        elif arguments.morph is not None:
            first, last = (pipeline.parse(text) for text in arguments.morph)
            expressions = morph_expressions(first, last, arguments.frames)
            avatars = pipeline(
                arguments.identity,
                expressions,
                anchor_expressions=(expressions[0], expressions[-1]),
                settings=dataclasses.replace(settings, set_seed_noise="shared"),
                progress=progress,
            )
        else:
            avatars = pipeline(
                arguments.identity,
                arguments.expressions or DEFAULT_EXPRESSIONS,
                settings=settings,
                anchor_expressions=arguments.anchor_expressions or (),
                progress=progress,
            )
    folder = arguments.add_to or arguments.out
    assert folder is not None
    avatars.save(folder, None if arguments.morph is None else arguments.animation)
    return folder, avatars


if __name__ == "__main__":
    sys.exit(main())
