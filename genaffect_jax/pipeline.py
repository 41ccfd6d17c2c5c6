"""`Pipeline`: a trained model as one Python call, from an identity and expressions to an avatar set."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, UInt8

import genaffect_jax
from genaffect_jax.config import Config, ConfigError, MeshConfig, from_json
from genaffect_jax.data.avatars import draw, sample_identity
from genaffect_jax.data.photos import Align, PhotoReader
from genaffect_jax.data.pictures import DataError
from genaffect_jax.data.prompt_table import PromptTable
from genaffect_jax.data.sheet import contact_sheet, write_png
from genaffect_jax.diffusion.schedule import euler_sigmas
from genaffect_jax.faces.action_units import CHANNELS, WIDTH, neutral
from genaffect_jax.faces.encoders import ExpressionEncoder
from genaffect_jax.faces.expression_space import EncoderSpace, ExpressionError, ExpressionSpace, UnitSpace
from genaffect_jax.faces.grammar import Expression, parse_expressions
from genaffect_jax.faces.prompts import prompt_for
from genaffect_jax.generation import build_networks, make_program
from genaffect_jax.models.avatar_encoders import load_exemplar_encoder
from genaffect_jax.models.functional import Parameters
from genaffect_jax.models.genaffect import BranchScales
from genaffect_jax.models.prompts import Prompts
from genaffect_jax.models.weights import checksum, load_weights
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.checkpoint import Checkpoints
from genaffect_jax.training.face_encoders import FaceEncoders, read_bank, read_encoders
from genaffect_jax.training.generator import AUTOENCODER_FILE
from genaffect_jax.training.prompts import PROMPTS_FILE, read_prompts

# Pictures drawn at once; larger sets run in chunks of this many, padded, so one program serves all sizes.
CHUNK = 8
# Reference pictures of one identity; fewer are padded to as many, so one program serves all numbers.
MOST_REFERENCES = 4

Identity = str | Path | UInt8[np.ndarray, "S S 3"]


@dataclass(frozen=True)
class AvatarSet:
    """Pictures of one identity, made together.

    Attributes:
        references: uint8 [R, S, S, 3], the pictures that gave the identity.
        images: uint8 [E, S, S, 3], one per expression.
        expressions: names and vectors, in the order of `images`.
        settings: everything that decided the pictures: model, seed, identity, steps, guidance, scales, versions.
    """

    references: UInt8[np.ndarray, "R S S 3"]
    images: UInt8[np.ndarray, "E S S 3"]
    expressions: tuple[Expression, ...]
    settings: dict[str, Any]

    @property
    def reference(self) -> UInt8[np.ndarray, "S S 3"]:
        """The first reference."""
        return self.references[0]

    def sheet(self, columns: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """The references and every picture, labelled."""
        return contact_sheet(
            [*self.references, *self.images],
            ["reference"] * len(self.references) + [e.name for e in self.expressions],
            columns=columns,
        )

    def save(self, folder: Path) -> None:
        """Writes `sheet.png`, `NN_<expression>.png`, `reference.png` and `set.json`; all of it or nothing.

        Several references are `reference_1.png`, `reference_2.png` and so on. An earlier set in `folder` is replaced.

        Raises:
            ConfigError: `folder` holds something that is not an avatar set.
        """
        folder = Path(folder)
        check_output(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            new = Path(scratch) / "new"
            note = {"Software": f"genaffect_jax {genaffect_jax.__version__}",
                    "Comment": "generated picture; model {model}, seed {seed}".format(**self.settings)}  # fmt: skip
            for number, reference in enumerate(self.references, 1):
                write_png(reference, new / f"reference{f'_{number}' if len(self.references) > 1 else ''}.png")
            write_png(self.sheet(), new / "sheet.png", note)
            pictures = []
            for number, (image, expression) in enumerate(zip(self.images, self.expressions, strict=True), 1):
                name = f"{number:02d}_{expression.slug}.png"
                write_png(image, new / name, note)
                numbers = [round(float(v), 6) for v in expression.vector]
                units = self.settings["config"]["conditioning"]["expression_space"] == "units"
                pictures.append(
                    {"file": name, "expression": expression.name, "provenance": expression.provenance,
                     "vector": dict(zip(CHANNELS, numbers, strict=True)) if units else numbers}
                )  # fmt: skip
            (new / "set.json").write_text(json.dumps({**self.settings, "pictures": pictures}, indent=2) + "\n")
            if folder.exists():
                os.replace(folder, Path(scratch) / "old")
            os.replace(new, folder)


def check_output(folder: Path) -> None:
    """Raises ConfigError unless `folder` is new, empty, or holds an earlier avatar set."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / "set.json").exists():
        raise ConfigError(f"--out {folder}: holds files that are no avatar set; name a new or empty folder")


class Pipeline:
    """A trained model, ready to draw.

    Example:
        >>> avatars = Pipeline.load("out/avatar_tiny")(identity="seed:7", expressions="joy, sadness, anger:0.6")
        >>> avatars.save(Path("out/seven"))
    """

    def __init__(
        self, config: Config, generator: Parameters, autoencoder: Parameters, name: str, prompts: PromptTable | None,
        faces: FaceEncoders, space: ExpressionSpace, photos: PhotoReader,
    ):  # fmt: skip
        """Use `Pipeline.load`; `name` says in `set.json` which model drew the pictures."""
        self.config = config
        self.name = name
        self.space = space
        self.photos = photos
        self._generator = generator
        self._frozen: dict[str, Any] = {"autoencoder": autoencoder}
        self._table = prompts
        if prompts is not None:
            self._frozen["prompts"] = Prompts.of(prompts, config.text.negative)
        if faces.identity is not None:
            self._frozen["identity_encoder"] = faces.identity.parameters
        self._program = make_program(
            config.model,
            *build_networks(config.model, config.train.compute_dtype),
            identity_encoder=None if faces.identity is None else faces.identity.network,
        )

    @classmethod
    def load(
        cls, model: str | Path, expression_encoder: str | ExpressionEncoder | None = None, *,
        align: Align | None = None, face_models: Path | None = None, face_index: int = 0,
    ) -> Pipeline:  # fmt: skip
        """Loads the averaged weights of the newest checkpoint in a training's working folder.

        Args:
            model: the working folder.
            expression_encoder: reads exemplar pictures: `package:NAME`, a weight file, the .json of an ONNX encoder, or
                any encoder of action units.
                Left out, the model's own does, if it has one. A model whose expressions are an encoder's vectors takes
                no other.
            align: what is done with picture files: `none` takes their middle square, `face` brings the face into its
                place. Left out, what the model's training pictures went through (`data.align`).
            face_models: folder of an insightface model pack, to align with.
            face_index: which face of a reference, counted from the largest, 0; of exemplars the largest counts.

        Raises:
            ConfigError: the folder is no working folder, the encoder's vectors are not those of the model, or the face
                models are missing.
            CheckpointError: it has no complete checkpoint.
            DataError, WeightsError: a prompt table, bank, autoencoder or face encoder is missing or damaged.
        """
        workdir = Path(model)
        if not (workdir / "checkpoints").is_dir():
            raise ConfigError(f"--model {workdir}: no working folder of a training (it has no checkpoints/)")
        checkpoints = Checkpoints(workdir)
        config = from_json(Config, checkpoints.config())
        photos = PhotoReader(align or config.data.align, face_models, face_index)
        generator, autoencoder = build_networks(config.model)
        parameters = checkpoints.averaged_parameters(generator, make_mesh(MeshConfig()))
        weights = workdir / AUTOENCODER_FILE
        name = f"{workdir.name}, step {checkpoints.latest_step()}, autoencoder {checksum(weights)[:12]}"
        prompts = read_prompts(config, workdir / PROMPTS_FILE)
        if prompts is not None:
            name += f", prompts {checksum(workdir / PROMPTS_FILE)[:12]}"
        faces = read_encoders(config.model, workdir)
        if faces.identity is not None:
            name += f", {faces.identity.name} {faces.identity.checksum[:12]}"
        space = _expression_space(config, workdir, faces, expression_encoder, photos)
        frozen = load_weights(autoencoder, weights, config.model.autoencoder)
        return cls(config, parameters, frozen, name, prompts, faces, space, photos)

    def __call__(
        self,
        identity: Identity | Sequence[Identity],
        expressions: str | Sequence[Expression],
        *,
        steps: int = 24,
        guidance_identity: float = 1.0,
        guidance_expression: float = 1.5,
        identity_scale: float | Sequence[float] = 1.0,
        expression_scale: float | Sequence[float] = 1.0,
        identity_interval: Sequence[float] = (0.0, 1.0),
        expression_interval: Sequence[float] = (0.0, 1.0),
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> AvatarSet:
        """Draws one set.

        Args:
            identity: a picture file, `seed:N` (procedural avatar number N, neutral), or a uint8 RGB picture of the
                model's size; or up to `MOST_REFERENCES` of them that show one person.
            expressions: text of the expression grammar (`"joy, AU12L=0.7, face.png:1.3"`), or what `parse` made of it.
            steps: Euler steps.
            guidance_identity: how much further the pictures go from anybody towards this person; 1 is as trained.
            guidance_expression: how much further they go from this person towards the expression; 1 is as trained.
            identity_scale, expression_scale: weight of a branch, one number or one per layer; 1 is as trained, 0 leaves
                the branch out.
            identity_interval, expression_interval: lowest and highest noise level (sigma, from 1 at the start to 0 at
                the end) at which a scale acts; elsewhere the branch is as trained.
            seed: with the expression it decides a picture's noise, so a picture is the same in every set.
            progress: called with (pictures done, pictures in all).

        Raises:
            ExpressionError: an expression is not understood, or its picture cannot be read.
            ConfigError: the identity or a number is not allowed.
            DataError: the picture file cannot be read, or an expression's prompt is not in the prompt table.
        """
        for option, value, low in (
            ("steps", steps, 1),
            ("guidance_identity", guidance_identity, 0),
            ("guidance_expression", guidance_expression, 0),
            ("seed", seed, 0),
        ):
            if not value >= low:
                raise ConfigError(f"--{option} {value}: must be at least {low}")
        scales = BranchScales.of(
            self.config.model.mmdit.num_layers, identity_scale, expression_scale, identity_interval, expression_interval
        )
        wanted = tuple(self.parse(expressions) if isinstance(expressions, str) else expressions)
        prompts = [prompt_for(e, self.config.text) for e in wanted]
        rows = None if self._table is None else self._table.rows(prompts)
        identities = [identity] if isinstance(identity, (str, Path, np.ndarray)) else list(identity)
        if not 1 <= len(identities) <= MOST_REFERENCES:
            raise ConfigError(f"--identity: {len(identities)} pictures, must be 1 to {MOST_REFERENCES}")
        references = np.stack([self.reference(one) for one in identities])
        given = np.arange(MOST_REFERENCES) < len(references)
        padded = np.resize(references, (MOST_REFERENCES, *references.shape[1:]))
        sigmas = euler_sigmas(steps, self.config.flow.shift)
        images: list[UInt8[np.ndarray, "S S 3"]] = []
        items = item_numbers(wanted)
        for start in range(0, len(wanted), CHUNK):
            chosen = [min(i, len(wanted) - 1) for i in range(start, start + min(CHUNK, len(wanted)))]
            drawn = self._program(
                self._generator, self._frozen, padded[None], given[None],
                np.stack([wanted[i].vector for i in chosen])[None], items[chosen][None],
                np.int32(seed), sigmas,
                np.float32(guidance_identity), np.float32(guidance_expression), scales,
                None if rows is None else rows[chosen][None],
            )  # fmt: skip
            images.extend(np.asarray(jax.device_get(drawn))[0][: len(wanted) - start])
            if progress:
                progress(len(images), len(wanted))
        names = ["array" if isinstance(one, np.ndarray) else str(one) for one in identities]
        settings = {
            "model": self.name,
            "seed": seed,
            "identity": names[0] if len(names) == 1 else names,
            "align": self.photos.align,
            "steps": steps,
            "guidance_identity": guidance_identity,
            "guidance_expression": guidance_expression,
            "identity_scale": np.asarray(identity_scale).tolist(),
            "expression_scale": np.asarray(expression_scale).tolist(),
            "identity_interval": list(identity_interval),
            "expression_interval": list(expression_interval),
            **({} if rows is None else {"prompts": prompts}),
            "config": json.loads(json.dumps(dataclasses.asdict(self.config.model))),
            "versions": {
                "python": sys.version.split()[0],
                **{name: version(name) for name in ("genaffect-jax", "jax", "flax", "numpy")},
            },
        }
        return AvatarSet(references, np.stack(images), wanted, settings)

    def parse(self, expressions: str) -> list[Expression]:
        """The expressions of a text of the grammar, as vectors of this model.

        Raises:
            ExpressionError: the text is not understood, a picture cannot be read, or the model knows no such word.
        """
        return parse_expressions(expressions, self.space)

    def reference(self, identity: Identity) -> UInt8[np.ndarray, "S S 3"]:
        """The reference picture that an identity stands for, uint8 [S, S, 3] at the model's size.

        Raises:
            ConfigError: a malformed `seed:N`, or an array of the wrong shape.
            DataError: the file cannot be read as a picture.
        """
        size = self.config.model.image_size
        if isinstance(identity, np.ndarray):
            if identity.shape != (size, size, 3) or identity.dtype != np.uint8:
                raise ConfigError(f"identity: {identity.dtype} {identity.shape}, needs uint8 ({size}, {size}, 3)")
            return identity
        text = str(identity)
        if text.startswith("seed:"):
            number = text.removeprefix("seed:")
            if not number.isdecimal():
                raise ConfigError(f"--identity {text}: seed:N needs a whole number N from 0")
            return draw(sample_identity(int(number)), neutral(), size)
        try:
            return self.photos(Path(identity), size)
        except DataError as e:
            raise DataError(f"--identity {text}: {e}") from e


def _expression_space(
    config: Config, workdir: Path, faces: FaceEncoders, given: str | ExpressionEncoder | None, photos: PhotoReader
) -> ExpressionSpace:
    """What words and pictures are to this model; `given` reads pictures in place of the model's own encoder."""
    own: ExpressionEncoder | None = faces.expression
    encoder = load_exemplar_encoder(given) if isinstance(given, str) else given or own

    def read(file: str) -> Float32[np.ndarray, " W"]:
        if encoder is None:
            raise ExpressionError(
                f"expression '{file}': a picture needs an expression encoder, and this model has none; give one with "
                "--expression_encoder (package:expression_avatar reads procedural avatars)"
            )
        try:
            picture = photos.largest(Path(file), config.model.image_size)
        except DataError as e:
            raise ExpressionError(f"expression '{file}': {e}") from e
        return encoder(picture[None])[0]

    if config.model.conditioning.expression_space == "units":
        if encoder is not None and encoder.width != WIDTH:
            raise ConfigError(f"--expression_encoder {encoder.name}: gives {encoder.width} numbers, this model's "
                              f"expressions are {WIDTH} action units")  # fmt: skip
        return UnitSpace(read)
    if own is None or encoder is None or encoder.checksum != own.checksum:
        raise ConfigError("--expression_encoder: this model's expressions are the vectors of its own encoder; "
                          "leave the option out")  # fmt: skip
    bank = read_bank(workdir, own)
    return EncoderSpace(bank.encoder, bank.vectors, read)


def item_numbers(expressions: Sequence[Expression]) -> np.ndarray:
    """The number that, with the seed, decides a picture's noise: int32, from the expression vector alone.

    A picture therefore does not depend on what else is in its set. Equal expressions in one set are told apart by
    how often they came before.
    """
    seen: dict[bytes, int] = {}
    numbers = []
    for expression in expressions:
        key = np.round(expression.vector, 4).astype("<f4").tobytes()
        seen[key] = seen.get(key, -1) + 1
        numbers.append(zlib.crc32(key + bytes([seen[key] % 256])) & 0x7FFFFFFF)
    return np.array(numbers, np.int32)
