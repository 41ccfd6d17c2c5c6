"""`Pipeline`: a trained model as one Python call, from an identity and expressions to an avatar set."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, UInt8

from genaffect_jax.checkpoints.averaged_weights import AveragedWeights
from genaffect_jax.checkpoints.components import (
    FaceEncoders,
    read_autoencoder,
    read_encoders,
    read_latent_range,
    read_prompts,
)
from genaffect_jax.checkpoints.manager import LATEST
from genaffect_jax.config import DenoiserRun, MeshConfig, SamplingConfig, from_json, to_json, with_changes
from genaffect_jax.data.face_encoders import ExpressionEncoder
from genaffect_jax.data.latent_range import LatentRange
from genaffect_jax.data.photos.reader import Align, PhotoReader
from genaffect_jax.data.prompts.table import PromptTable, prompt_for
from genaffect_jax.errors import ConfigError, shown
from genaffect_jax.expressions.grammar import Expression, parse_expressions
from genaffect_jax.expressions.space import ExpressionSpace
from genaffect_jax.inference.arguments import (
    checked_align,
    checked_checkpoint,
    checked_devices,
    checked_encoder,
    checked_face_index,
    checked_loras,
    checked_path,
)
from genaffect_jax.inference.avatar_set import AvatarSet
from genaffect_jax.inference.chunking import Progress, SampleRequest, SetSampler
from genaffect_jax.inference.expression_spaces import open_expression_space
from genaffect_jax.inference.noise_ids import noise_ids_of
from genaffect_jax.inference.program import IMAGES, make_program
from genaffect_jax.inference.references import MOST_REFERENCES, Identity, as_identities, read_reference
from genaffect_jax.inference.settings import resolve_settings
from genaffect_jax.inference.unfamiliar import ReferenceCheck, warn_of_unfamiliar
from genaffect_jax.interop.diffusers.lora import add_loras, read_lora
from genaffect_jax.io.package_files import DEFAULT_MODEL
from genaffect_jax.io.progress import watched
from genaffect_jax.io.weight_file import checksum
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Parameters
from genaffect_jax.models.mmdit.score_bound import LARGEST_SCORE, score_bound
from genaffect_jax.models.prompts import Prompts
from genaffect_jax.parallel.compilation import Tell
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.sharding import replicated
from genaffect_jax.version import __version__

DEFAULT_ANCHORS = 8

Expressions = str | Expression | Sequence[str | Expression]


class Pipeline:
    """A trained model, ready to sample.

    Example:
        >>> avatars = Pipeline.load("out/avatar_tiny")(identity="seed:7", expressions="joy, sadness, anger:0.6")
        >>> avatars.save(Path("out/seven"))

    Attributes:
        config: the run that trained the model.
        name: names the model in `set.json`: run folder, step, LoRA files with their weights, checksums of all files.
        faces: the face encoders that the model is conditioned on.
        space: expression vectors of words and image files.
        photos: reads image files.
        prompts: text embeddings of all prompts; None for a model that reads none.
        sampler: runs the program in chunks.
        reference_check: measures how far references lie from the training's images; None for a model whose run folder
            does not say what is usual.
    """

    def __init__(
        self,
        config: DenoiserRun,
        denoiser: Parameters,
        autoencoder: Parameters,
        name: str,
        prompts: PromptTable | None,
        faces: FaceEncoders,
        space: ExpressionSpace,
        photos: PhotoReader,
        mesh: Mesh,
        known: LatentRange | None = None,
    ):
        """Takes the parts as they are; use `Pipeline.load`."""
        self.config = config
        self.name = name
        self.faces = faces
        self.space = space
        self.photos = photos
        self.prompts = prompts
        frozen_components: dict[str, Any] = {"autoencoder": autoencoder}
        if prompts is not None:
            frozen_components["prompts"] = Prompts.of(prompts, config.text.negative)
        if faces.identity is not None:
            frozen_components["identity_encoder"] = faces.identity.parameters
        denoiser, frozen_components = jax.device_put((denoiser, frozen_components), replicated(mesh))
        dtype = config.train.compute_dtype
        networks = build_networks(config.model, dtype, max_free=score_bound(denoiser) <= LARGEST_SCORE)
        program = make_program(
            config.model,
            *networks,
            identity_encoder=None if faces.identity is None else faces.identity.network,
            mesh=mesh,
        )
        self.sampler = SetSampler(config.model, program, denoiser, frozen_components, dtype, mesh.size)
        self.reference_check = (
            None if known is None else ReferenceCheck(known, networks[1], frozen_components["autoencoder"])
        )

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        expression_encoder: str | ExpressionEncoder | None = None,
        devices: Sequence[jax.Device] | None = None,
        *,
        align: Align | None = None,
        face_models: str | Path | None = None,
        face_index: int = 0,
        checkpoint: str | int = LATEST,
        loras: Sequence[tuple[str | Path, float]] = (),
    ) -> Pipeline:
        """Loads the averaged weights of a checkpoint from the run folder of a training, or a released model.

        Args:
            model: the run folder, the folder of a released model, or `package:NAME`. Default: the model inside this
                package.
            expression_encoder: reads expressions from image files: `package:NAME`, a weight file, the .json of an ONNX
                encoder, or any encoder of action units. Default: the model's own, if it has one. A model whose
                expressions are vectors of its own encoder accepts no other.
            devices: devices over which the images of a set are spread. Default: all of this process. The images do
                not depend on it.
            align: treatment of image files: `none` takes the centre square, `face` moves the detected face to its
                place. Default: as the model's training images were treated (`data.align`).
            face_models: folder of an insightface model pack, needed to align.
            face_index: face to use in a reference, counted from the largest, 0. Image files of expressions always use
                the largest.
            checkpoint: `latest`, `best` (by the loss on held-out people), or the number of a step.
            loras: LoRA files of other programs with their weights, all added to the denoiser's kernels
                (`interop.diffusers.lora`).

        Raises:
            ConfigError: the folder is no run folder and no released model, the encoder's vectors do not fit the model,
                the face models are missing, or the weight of a LoRA file is zero.
            CheckpointError: there is no complete checkpoint, or not the one asked for.
            DataError, WeightsError: a prompt table, word prototypes, autoencoder or face encoder is missing or damaged,
                or a LoRA file is, does not fit the denoiser or changes nothing.
        """
        checkpoint, align, face_index = (
            checked_checkpoint(checkpoint),
            checked_align(align),
            checked_face_index(face_index),
        )
        expression_encoder, wanted = checked_encoder(expression_encoder), checked_loras(loras)
        face_models = None if face_models is None else checked_path(face_models, "face_models")
        mesh = Mesh(np.array(checked_devices(devices)), (IMAGES,))
        weights = AveragedWeights(checked_path(model, "model"), checkpoint)
        run_dir = weights.run_dir
        config = dataclasses.replace(weights.config(), sampling=run_dir.sampling_defaults())
        photos = PhotoReader(align or config.data.align, face_models, face_index)
        files = [read_lora(path, weight, config.model.mmdit) for path, weight in wanted]
        # The networks that nearly all weights are sampled with; their shapes do not depend on `max_free`.
        denoiser, autoencoder = build_networks(config.model, config.train.compute_dtype, max_free=True)
        one_axis = make_mesh(MeshConfig(), mesh.devices.tolist())
        # Kernels are cast after the additions: half precision would lose most of them.
        changed = frozenset().union(*(file.parameters for file in files))
        stored = denoiser.without_casts(changed)
        parameters = weights.parameters(stored, one_axis, cast_kernels=True)
        if files:
            parameters = denoiser.cast_kernels(add_loras(parameters, files))
        name = f"{run_dir.path.name}, step {weights.step()}, autoencoder {checksum(run_dir.autoencoder)[:12]}"
        for file in files:
            name += f", lora {file.name}"
        prompts = read_prompts(run_dir, config)
        if prompts is not None:
            name += f", prompts {checksum(run_dir.prompts)[:12]}"
        faces = read_encoders(run_dir, config.model)
        if faces.identity is not None:
            name += f", {faces.identity.name} {faces.identity.checksum[:12]}"
        space = open_expression_space(config, run_dir, faces, expression_encoder, photos)
        autoencoder_parameters = read_autoencoder(run_dir, autoencoder, config.model.autoencoder)
        known = read_latent_range(run_dir)
        return cls(config, parameters, autoencoder_parameters, name, prompts, faces, space, photos, mesh, known)

    def __call__(
        self,
        identity: Identity | Sequence[Identity],
        expressions: Expressions,
        *,
        settings: SamplingConfig | None = None,
        anchor_expressions: Expressions = (),
        progress: Progress | bool | None = None,
        tell: Tell | None = None,
        **changes: Any,
    ) -> AvatarSet:
        """Samples one set.

        A reference far outside of what the model was trained on is an `UnfamiliarIdentityWarning`; the set is sampled
        all the same.

        Args:
            identity: an image file, `seed:N` (procedural avatar number N, neutral), or a uint8 RGB image of the
                model's size; or up to `MOST_REFERENCES` of them that show one person.
            expressions: a text of the expression grammar (`"joy, AU12L=0.7, face.png:1.3"`), or a list of such texts
                and of what `parse` returned.
            settings: how to sample. Default: `config.sampling`, the model's own.
            anchor_expressions: expressions of the anchors, part of the set or not. Default: the first
                `settings.anchors` of the set.
            progress: True shows a bar on stderr, and when the program is compiled; or a function that is called with
                (images done, images in all).
            tell: called with a line before a program is compiled, which takes longer than a set, and one afterwards.
            changes: single settings, by the names of `SamplingConfig`: `steps=4, consistency=0.3`.

        Raises:
            ExpressionError: an expression is not understood, or its image cannot be read.
            ConfigError: the identity or a setting is not allowed.
            DataError: an image file cannot be read, or an expression's prompt is not in the prompt table.
            MemoryLimitError: a call needs more memory than a device has.
            SamplingError: an image is not finite; the message names what to lower.
        """
        settings = self.config.sampling.settings() if settings is None else settings
        if not isinstance(settings, SamplingConfig):
            raise ConfigError("must be a SamplingConfig", field="settings", found=shown(settings))
        settings = with_changes(settings, changes)
        wanted = self._expressions(expressions, "expressions")
        anchors = self._expressions(anchor_expressions, "anchor_expressions")
        identities, names = as_identities(identity)
        references = np.stack([self.reference(one) for one in identities])
        distances = None if self.reference_check is None else self.reference_check(references)
        warn_of_unfamiliar(names, distances or [0.0] * len(names), stacklevel=2)
        with watched(progress, tell) as told:
            images, anchors = self._sample(references, wanted, noise_ids_of(wanted), anchors, settings, *told)
        return AvatarSet(references, images, wanted, anchors, self._record(names, wanted, settings, distances))

    def add(
        self,
        avatars: AvatarSet,
        expressions: Expressions,
        progress: Progress | bool | None = None,
        tell: Tell | None = None,
    ) -> AvatarSet:
        """The set with more expressions, which look as if they had been part of it: same person, settings and anchors.

        `progress` and `tell` are those of `__call__`.

        Raises:
            ConfigError: another model sampled the set, or no expression is given.
            ExpressionError, DataError, MemoryLimitError, SamplingError: see `__call__`.
        """
        if not isinstance(avatars, AvatarSet):
            raise ConfigError("must be an AvatarSet", field="avatars", found=shown(avatars))
        if avatars.settings["model"] != self.name:
            raise ConfigError(f"the set was sampled by another model, {avatars.settings['model']}; this is {self.name}")
        more = self._expressions(expressions, "expressions")
        fields = {f.name for f in dataclasses.fields(SamplingConfig)}
        settings = from_json(SamplingConfig, json.dumps({k: v for k, v in avatars.settings.items() if k in fields}))
        noise_ids = noise_ids_of([*avatars.expressions, *more])[len(avatars.expressions) :]
        with watched(progress, tell) as told:
            images, _ = self._sample(avatars.references, more, noise_ids, avatars.anchors, settings, *told)
        return dataclasses.replace(
            avatars,
            images=np.concatenate([avatars.images, images]),
            expressions=(*avatars.expressions, *more),
        )

    def parse(self, expressions: str) -> list[Expression]:
        """The expressions of a text of the grammar, as vectors of this model.

        Raises:
            ExpressionError: the text is not understood, an image cannot be read, or the model knows no such word.
            ConfigError: it is no text.
        """
        if not isinstance(expressions, str):
            raise ConfigError("must be a text such as 'joy, anger:0.6'", field="expressions", found=shown(expressions))
        return parse_expressions(expressions, self.space)

    def reference(self, identity: Identity) -> UInt8[np.ndarray, "S S 3"]:
        """The reference image that an identity stands for, uint8 [S, S, 3] at the model's size.

        Raises:
            ConfigError: a malformed `seed:N`, or an array of the wrong shape or type.
            DataError: the file cannot be read as an image.
        """
        return read_reference(identity, self.config.model.image_size, self.photos)

    def __repr__(self) -> str:
        return f"<Pipeline of {self.name}, {self.config.model.image_size} px>"

    def _expressions(self, given: Expressions, field: str) -> tuple[Expression, ...]:
        parts = list(given) if isinstance(given, (list, tuple)) else [given]
        found: list[Expression] = []
        for part in parts:
            if not isinstance(part, (str, Expression)):
                allowed = "must be a text such as 'joy, anger:0.6', or a list of texts and of what `parse` returns"
                raise ConfigError(allowed, field=field, found=shown(part))
            found += self.parse(part) if isinstance(part, str) else [part]
        if not found and field == "expressions":
            raise ConfigError("none given; a set needs at least one", field=field)
        return tuple(found)

    def _sample(
        self,
        references: UInt8[np.ndarray, "R S S 3"],
        wanted: tuple[Expression, ...],
        noise_ids: Int32[np.ndarray, " E"],
        anchors: tuple[Expression, ...],
        settings: SamplingConfig,
        progress: Progress | None,
        tell: Tell | None,
    ) -> tuple[UInt8[np.ndarray, "E S S 3"], tuple[Expression, ...]]:
        """The images of the wanted expressions, and the anchors that they read."""
        spec, params = resolve_settings(self.config.model, self.config.flow.shift, settings)
        anchors = (anchors or _first_anchors(wanted, settings)) if spec.shared > 0 else ()
        anchor_ids = noise_ids_of(anchors)
        # A wanted image that is also an anchor is sampled once, as an anchor.
        keys = [(number, e.vector.tobytes()) for number, e in zip(noise_ids, wanted, strict=True)]
        places = {
            (number, e.vector.tobytes()): i for i, (number, e) in enumerate(zip(anchor_ids, anchors, strict=True))
        }
        rest = [i for i, key in enumerate(keys) if key not in places]
        shared = anchors
        if len(anchors) == 1 and not rest:  # an only image would read only itself
            shared, places, rest = (), {}, list(range(len(wanted)))
            spec = dataclasses.replace(spec, shared=0)
        return_anchors = len(rest) < len(wanted)
        sampled = self.sampler.sample(
            np.resize(references, (MOST_REFERENCES, *references.shape[1:])),
            np.arange(MOST_REFERENCES) < len(references),
            self._request(shared, anchor_ids[: len(shared)], settings),
            self._request([wanted[i] for i in rest], noise_ids[rest], settings),
            spec,
            params,
            settings,
            return_anchors,
            progress,
            tell,
        )
        first = len(anchors) if return_anchors else 0
        order = {i: first + place for place, i in enumerate(rest)}
        return sampled[[order[i] if i in order else places[keys[i]] for i in range(len(wanted))]], anchors

    def _request(
        self, expressions: Sequence[Expression], noise_ids: Int32[np.ndarray, " E"], settings: SamplingConfig
    ) -> SampleRequest:
        vectors = np.array([e.vector for e in expressions], np.float32)
        rows = None
        if self.prompts is not None:
            rows = self.prompts.rows([prompt_for(e, self.config.text) for e in expressions])
        noise = np.zeros_like(noise_ids) if settings.set_seed_noise == "shared" else noise_ids
        width = self.config.model.conditioning.expression_width
        return SampleRequest(vectors.reshape(len(expressions), width), noise, rows)

    def _record(
        self,
        names: list[str],
        wanted: tuple[Expression, ...],
        settings: SamplingConfig,
        distances: list[float] | None,
    ) -> dict[str, Any]:
        """Everything that decided the images, for `set.json`."""
        return {
            "model": self.name,
            "identity": names[0] if len(names) == 1 else names,
            "align": self.photos.align,
            **({} if distances is None else {"reference_distances": [round(d, 3) for d in distances]}),
            **json.loads(to_json(settings)),
            **({} if self.prompts is None else {"prompts": [prompt_for(e, self.config.text) for e in wanted]}),
            "config": json.loads(to_json(self.config.model)),
            "versions": {
                "python": sys.version.split()[0],
                "genaffect-jax": __version__,
                **{module.__name__: module.__version__ for module in (jax, flax, np)},
            },
        }


def _first_anchors(wanted: tuple[Expression, ...], settings: SamplingConfig) -> tuple[Expression, ...]:
    if settings.anchors is not None and settings.anchors > len(wanted):
        reason = f"the set has {len(wanted)} expressions; there cannot be more anchors"
        raise ConfigError(reason, field="anchors", found=settings.anchors)
    return wanted[: settings.anchors or DEFAULT_ANCHORS]
