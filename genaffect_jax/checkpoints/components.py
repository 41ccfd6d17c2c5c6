"""The frozen components of a denoiser's run folder: autoencoder, face encoders, word prototypes, prompt table, and the
range of the training images' latents.

`install_*` puts a component into the folder when a run begins, and reads it; a run that continues finds it there. The
folder therefore stays usable when the original files move or change. As long as there is no checkpoint, every start
installs from the sources anew, as an earlier start may have failed or had other settings. Nothing is put into the
folder before it has been read and checked, and its digest is recorded (`checkpoints.digests`). `read_*` compares the
digest and reads a component, for sampling. The autoencoder's sources, released weights among them, are read by
`training.denoiser.pretrained.place_autoencoder`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int32

from genaffect_jax.checkpoints.digests import file_digest, is_recorded, record_files, remove_file, require_intact
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import AutoencoderConfig, DenoiserRun, ModelConfig, TextConfig
from genaffect_jax.data.face_encoders import ExpressionEncoder, IdentityEncoder
from genaffect_jax.data.latent_range import LatentRange
from genaffect_jax.data.prompts.table import PromptTable, prompt_for
from genaffect_jax.data.sources.base import Example
from genaffect_jax.errors import ConfigError, DataError, WeightsError
from genaffect_jax.expressions.grammar import parse_expression
from genaffect_jax.expressions.prototypes import WordPrototypes
from genaffect_jax.io.atomic import copy_atomically
from genaffect_jax.io.package_files import PACKAGE_PREFIX
from genaffect_jax.io.weight_file import load_weights, resolve_weights
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.face_encoders.encoder import AvatarEncoder, load_conditioning_encoder, load_exemplar_encoder
from genaffect_jax.models.face_encoders.onnx_expression import ONNX_SUFFIX, OnnxExpressionEncoder
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.distributed import is_first


def installs(run_dir: RunDir, file: Path) -> bool:
    """Whether this process has to put a component into the folder. Of several processes the first does.

    Raises:
        WeightsError: the run has a checkpoint, and the component that it was trained with is gone. What the settings
            name now may be another one.
    """
    if run_dir.has_checkpoint and not os.path.lexists(file) and is_recorded(run_dir, file):
        raise WeightsError(f"{file}: is gone, and the run was trained with it; restore it from a copy")
    return is_first() and not (run_dir.has_checkpoint and os.path.lexists(file))


def install_autoencoder(
    run_dir: RunDir,
    autoencoder: Functional[AutoencoderKL],
    config: AutoencoderConfig,
    place: Callable[[Path], None],
) -> Parameters:
    """Puts the autoencoder into the folder, unless the run continues with the one there, and reads it.

    Args:
        run_dir: the run folder.
        autoencoder: the network.
        config: its configuration.
        place: reads and checks the source, and then writes a weight file to a path, atomically.

    Raises:
        WeightsError: as `place` and `read_autoencoder`. Nothing has been put into the folder then.
    """
    if installs(run_dir, run_dir.autoencoder):
        place(run_dir.autoencoder)
        record_files(run_dir, [run_dir.autoencoder])
    return read_autoencoder(run_dir, autoencoder, config)


def read_autoencoder(run_dir: RunDir, autoencoder: Functional[AutoencoderKL], config: AutoencoderConfig) -> Parameters:
    """The parameters of the frozen autoencoder, float32.

    Raises:
        WeightsError: the file is missing or damaged, or of another configuration.
    """
    require_intact(run_dir, run_dir.autoencoder)
    return load_weights(autoencoder, run_dir.autoencoder, config)


@dataclass(frozen=True)
class FaceEncoders:
    """The face encoders of a model; None stands for one that it does not have."""

    identity: AvatarEncoder | None
    """Gives the embeddings of the references."""
    expression: AvatarEncoder | OnnxExpressionEncoder | None
    """Reads expressions from images."""


def install_encoders(run_dir: RunDir, config: ModelConfig) -> FaceEncoders:
    """Copies the configured face encoders into the folder, unless the run continues with those there, and reads them.

    Raises:
        WeightsError: a file is missing or damaged, or of another kind.
        ConfigError: an encoder is an evaluator, or a configured width is not the encoder's.
        In either case nothing has been copied.
    """
    identity, expression = config.identity_encoder, config.expression_encoder
    writes: list[tuple[Callable[[], None], list[Path]]] = []
    if identity and installs(run_dir, run_dir.identity_encoder):
        encoder = load_conditioning_encoder(identity, "identity")
        _require_width("identity_embedding", config.conditioning.identity_embedding, encoder)
        file = run_dir.identity_encoder
        writes.append((lambda: copy_atomically(resolve_weights(identity), run_dir.identity_encoder), [file]))
    if expression and installs(run_dir, file := _expression_file(run_dir, config)):
        reader = load_exemplar_encoder(expression)
        _require_width("expression_width", config.conditioning.expression_width, reader)
        if isinstance(reader, OnnxExpressionEncoder):
            onnx = reader
            writes.append((lambda: onnx.write(run_dir.onnx_expression_encoder), [file, file.with_suffix(".onnx")]))
        else:
            writes.append((lambda: copy_atomically(resolve_weights(expression), run_dir.expression_encoder), [file]))
    for write, files in writes:
        write()
        record_files(run_dir, files)
    return read_encoders(run_dir, config)


def read_encoders(run_dir: RunDir, config: ModelConfig) -> FaceEncoders:
    """The face encoders in the folder.

    Raises:
        WeightsError: a file is missing or damaged.
        ConfigError: a configured width is not the encoder's.
    """
    identity = expression = None
    if config.identity_encoder:
        file = network_file(run_dir, run_dir.identity_encoder, config.identity_encoder)
        identity = load_conditioning_encoder(str(file), "identity")
        _require_width("identity_embedding", config.conditioning.identity_embedding, identity)
    if config.expression_encoder:
        file = network_file(run_dir, _expression_file(run_dir, config), config.expression_encoder)
        if file == run_dir.onnx_expression_encoder:
            require_intact(run_dir, file.with_suffix(".onnx"))
        expression = load_exemplar_encoder(str(file))
        _require_width("expression_width", config.conditioning.expression_width, expression)
    return FaceEncoders(identity, expression)


def network_file(run_dir: RunDir, file: Path, source: str) -> Path:
    """The file of a frozen network, which is as it was written: that in the folder, or the package's. A released model
    leaves out one that the package has, and records its digest.

    Args:
        run_dir: a run folder or a released model.
        file: its place in the folder.
        source: what the configuration says that it was copied from.

    Raises:
        WeightsError: it is missing or damaged, or the package has another one by now.
    """
    if os.path.lexists(file) or not run_dir.denoiser.is_file() or not source.startswith(PACKAGE_PREFIX):
        require_intact(run_dir, file)
        return file
    found = resolve_weights(source)
    if not is_recorded(run_dir, file, file_digest(found)):
        raise WeightsError(f"{file}: is missing, and {source} of this version of the package is another network")
    return found


def install_prototypes(
    run_dir: RunDir, examples: Sequence[Example], people: Sequence[str], encoder: ExpressionEncoder
) -> WordPrototypes:
    """Learns the word prototypes from the training images, unless the run continues with those there, and reads them.

    Args:
        run_dir: the run folder.
        examples: labelled images with the encoder's vectors.
        people: names of the people that are trained on.
        encoder: the expression encoder.

    Raises:
        DataError: as `WordPrototypes.fit` and `read_prototypes`.
    """
    if installs(run_dir, run_dir.word_prototypes):
        known = set(people)
        chosen = [example for example in examples if example.identity in known]
        labels = {label: parse_expression(label) for label in {example.label for example in chosen}}
        vectors: Float[np.ndarray, "n W"] = np.stack([example.expression for example in chosen])
        WordPrototypes.fit(
            [labels[example.label] for example in chosen],
            vectors,
            encoder=encoder.name,
            encoder_checksum=encoder.checksum,
        ).write(run_dir.word_prototypes)
        record_files(run_dir, [run_dir.word_prototypes])
    return read_prototypes(run_dir, encoder)


def read_prototypes(run_dir: RunDir, encoder: ExpressionEncoder) -> WordPrototypes:
    """The word prototypes in the folder.

    Raises:
        DataError: the file is missing or damaged, or of another encoder.
    """
    require_intact(run_dir, run_dir.word_prototypes)
    prototypes = WordPrototypes.read(run_dir.word_prototypes)
    prototypes.check(encoder.name, encoder.checksum)
    return prototypes


def install_latent_range(run_dir: RunDir, fit: Callable[[], LatentRange | None]) -> LatentRange | None:
    """Fits the range of the training images, unless the run continues with the one there, and reads it. A run that an
    earlier version began gets one when it continues.

    Args:
        run_dir: the run folder.
        fit: fits the range; None if there are too few people.

    Raises:
        WeightsError, DataError: as `read_latent_range`.
    """
    if installs(run_dir, run_dir.latent_range):
        fitted = fit()
        if fitted is None:
            remove_file(run_dir, run_dir.latent_range)  # of an earlier start with other images
            return None
        fitted.write(run_dir.latent_range)
        record_files(run_dir, [run_dir.latent_range])
    return read_latent_range(run_dir)


def read_latent_range(run_dir: RunDir) -> LatentRange | None:
    """The range of the training images; None in a folder without one.

    Raises:
        WeightsError: the file is damaged, or gone though it was written.
        DataError: it holds no latent range.
    """
    if not os.path.lexists(run_dir.latent_range) and not is_recorded(run_dir, run_dir.latent_range):
        return None
    require_intact(run_dir, run_dir.latent_range)
    return LatentRange.read(run_dir.latent_range)


def install_prompts(
    run_dir: RunDir, config: DenoiserRun, examples: Sequence[Example]
) -> tuple[PromptTable, Int32[np.ndarray, " images"]] | None:
    """Copies the prompt table `text.embeddings` into the folder, unless the run continues with the one there, and
    reads it.

    Returns:
        The table and the row of each example's prompt; None for a model that reads no prompts.

    Raises:
        DataError: as `read_prompts`, or an example's prompt is not in the table. Nothing has been copied then.
    """
    copy = run_dir.prompts
    new = config.text.embeddings is not None and installs(run_dir, copy)
    source = config.text.embeddings if new and config.text.embeddings is not None else copy
    table = _read_prompts(config, source)
    if table is None:
        return None
    try:
        rows = prompt_rows(table, config.text, examples)
    except DataError as e:
        raise DataError(f"{source}: {e}") from e
    if new:
        table.write(copy)
        record_files(run_dir, [copy])
    return table, rows


def read_prompts(run_dir: RunDir, config: DenoiserRun) -> PromptTable | None:
    """The prompt table in the folder; None for a model with register tokens, which reads no prompts.

    Raises:
        DataError: the table is missing or damaged, or does not fit the configuration.
    """
    return _read_prompts(config, run_dir.prompts)  # the file has a checksum of its own


def prompt_rows(table: PromptTable, text: TextConfig, examples: Sequence[Example]) -> Int32[np.ndarray, " images"]:
    """The row of each example's prompt.

    Raises:
        DataError: prompts are not in the table; they are named.
    """
    prompts = {label: prompt_for(parse_expression(label), text) for label in {example.label for example in examples}}
    return table.rows([prompts[example.label] for example in examples])


def _read_prompts(config: DenoiserRun, path: Path) -> PromptTable | None:
    if not config.model.mmdit.reads_prompts:
        return None
    table = PromptTable.read(path)
    try:
        table.check(config.text, config.model.mmdit)
    except DataError as e:
        raise DataError(f"{path}: {e}") from e
    return table


def _expression_file(run_dir: RunDir, config: ModelConfig) -> Path:
    """By the configuration: an earlier start may have left a file of the other kind."""
    onnx = config.expression_encoder.endswith(ONNX_SUFFIX)
    return run_dir.onnx_expression_encoder if onnx else run_dir.expression_encoder


def _require_width(field: str, width: int, encoder: IdentityEncoder | ExpressionEncoder) -> None:
    if width != encoder.width:
        raise ConfigError(f"conditioning.{field}={width}: must be {encoder.width}, the width of {encoder.name}")
