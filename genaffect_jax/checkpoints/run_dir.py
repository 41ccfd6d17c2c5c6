"""The run folder: the name of every file in it, and the configuration that makes it the folder of one run.

No other module spells such a name: what writes or reads a file of a run takes its path from `RunDir`.
docs/guide/run_folder.md describes the same files for users.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genaffect_jax.checkpoints.changed_settings import Change, differences
from genaffect_jax.checkpoints.claim import require_own_settings, require_utf8
from genaffect_jax.config import AutoencoderRun, DenoiserRun, EncoderRun, SamplingDefaults, from_json, to_json
from genaffect_jax.errors import ConfigError
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.package_files import package_models, resolve_model
from genaffect_jax.parallel.distributed import describe_process, is_first

Run = DenoiserRun | AutoencoderRun | EncoderRun


@dataclass(frozen=True)
class RunDir:
    """The folder of one run, or of a released model, which has `denoiser` in the place of checkpoints.

    A training begins with `RunDir.create`; whatever reads a trained model begins with `RunDir.open`. `RunDir(path)`
    itself checks nothing and touches nothing. All properties are paths; whether a file is there is for the caller to
    ask.
    """

    path: Path
    """The folder."""

    @classmethod
    def create(cls, path: Path, config: Run, tell: Callable[[str], object] = warnings.warn) -> RunDir:
        """The folder of a run with this configuration: a new one, or the one that the run began in.

        `config.json` is written, or compared. Until there is a checkpoint nothing has been learned, so other settings
        replace the old ones. After that, fields that change what is learned must be equal; where a path differs,
        `checkpoints.sources.settle_sources` compares the contents and writes `config.json`. Of several processes the
        first writes it; the others call this afterwards and must find it.

        Args:
            path: the folder.
            config: the configuration.
            tell: called with one line if other settings are replaced.

        Raises:
            ConfigError: the folder belongs to a run with other settings, which are listed, cannot be written to, or
                has a path that is not UTF-8, or holds a released model or the `config.json` of another program; or the
                hosts do not share it.
        """
        require_utf8(path, "workdir")
        run_dir, text = cls(path), to_json(config)
        if not is_first():
            if not run_dir.config.exists() or run_dir.config.read_text() != text:
                raise ConfigError(
                    f"{describe_process()} does not find there what process 0 has written; the folder must lie on a "
                    "file system that all hosts share, and all processes need the same settings",
                    field="workdir",
                    found=path,
                )
            return run_dir
        require_own_settings(path, run_dir.config)
        if run_dir.denoiser.exists():
            raise ConfigError("holds a released model, which cannot be trained", field="workdir", found=path)
        if run_dir.has_checkpoint and run_dir.config.exists():
            changed = run_dir._changed(config)
            if others := [change.line for change in changed if not change.may_move]:
                raise run_dir.refusal(others)
            if changed:
                return run_dir
        elif (replaced := run_dir._replaced(config)) is not None:
            tell(f"{path}: no checkpoint yet, so the settings of an earlier start are replaced ({replaced})")
        try:
            write_atomically(run_dir.config, text)
        except OSError as e:
            raise ConfigError(f"cannot be written to: {e.strerror}", field="workdir", found=path) from e
        return run_dir

    @classmethod
    def of_model(cls, model: Path) -> RunDir:
        """The folder of a model: a folder, or `package:NAME` for a released model inside this package. Nothing is
        checked."""
        return cls(resolve_model(model))

    @classmethod
    def open(cls, model: Path) -> RunDir:
        """The folder of a training that has been started, or of a released model.

        Args:
            model: as `of_model` takes it.

        Raises:
            ConfigError: the folder is missing, has neither checkpoints nor released weights, or has a path that is not
                UTF-8; or the package has no such model.
        """
        require_utf8(model, "model")
        run_dir = cls.of_model(model)
        if not run_dir.checkpoints.is_dir() and not run_dir.denoiser.is_file():
            known = ", ".join(package_models()) or "none"
            raise ConfigError(
                f"no run folder of a training (it has no {run_dir.checkpoints.name}/) and no released model (it has no "
                f"{run_dir.denoiser.name}; inside the package: {known})",
                field="model",
                found=model,
            )
        return run_dir

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a complete checkpoint, readable or not. Until then a start may change everything."""
        try:
            return any(entry.name.isdecimal() for entry in os.scandir(self.checkpoints))
        except (FileNotFoundError, NotADirectoryError):
            return False

    # Every training

    @property
    def config(self) -> Path:
        """The resolved configuration, preset and options, as JSON."""
        return self.path / "config.json"

    def sampling_defaults(self) -> SamplingDefaults:
        """How the model of a denoiser's folder is sampled where nothing else is asked for; the usual settings if
        `config.json` is gone or says nothing of it.

        Raises:
            ConfigError: `config.json` cannot be read, or is damaged.
        """
        try:
            stored = json.loads(self.config.read_text(encoding="utf-8")).get("sampling", {})
            return from_json(SamplingDefaults, json.dumps(stored)) if stored else SamplingDefaults()
        except FileNotFoundError:
            return SamplingDefaults()
        except OSError as e:
            raise ConfigError(f"{self.config}: {e.strerror}") from e
        except (ValueError, AttributeError, RecursionError) as e:
            raise ConfigError(f"{self.config}: damaged ({e})") from e

    @property
    def denoiser(self) -> Path:
        """Averaged weights of the denoiser, of a released model (`python -m genaffect_jax.export model`)."""
        return self.path / "denoiser.safetensors"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, one folder a step; see `checkpoints.manager.Checkpoints`."""
        return self.path / "checkpoints"

    def checkpoint_digests(self, folder: Path) -> Path:
        """The step of a checkpoint and the digests of its files, as JSON, in the checkpoint's own folder.

        Args:
            folder: the checkpoint, under its own or a temporary name.
        """
        return folder / self.digests.name

    @property
    def digests(self) -> Path:
        """Digests of the components and frozen parameters, and of what settings with a path stood for, as JSON; see
        `checkpoints.digests`."""
        return self.path / "digests.json"

    @property
    def frozen_params(self) -> Path:
        """The parameters of the trained network that are not trained, written once; absent if all are trained."""
        return self.path / "frozen_params"

    @property
    def damaged(self) -> Path:
        """Folder of checkpoints that could not be read when the run was continued."""
        return self.path / "damaged"

    @property
    def metrics(self) -> Path:
        """The training log: one JSON row per logged step; see `training.metric_log`."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events: the numbers of `metrics` and the sample sheets."""
        return self.path / "tensorboard"

    def sheet(self, step: int) -> Path:
        """The sample sheet that the averaged weights made after a step, a PNG."""
        return self.path / "sheets" / f"{step:07d}.png"

    @property
    def profile(self) -> Path:
        """Folder of the profiler's trace of a few steps; see `training.profiler`."""
        return self.path / "profile"

    @property
    def rejected(self) -> Path:
        """Image files of an image folder that are not used, one JSON row each with the reason."""
        return self.path / "rejected.jsonl"

    @property
    def checked(self) -> Path:
        """Image files that have been decoded once, so that a second start need not decode them again, as JSON."""
        return self.path / "checked.json"

    @property
    def environment(self) -> Path:
        """What the bits of a deterministic run depend on, as JSON; see `checkpoints.environment`."""
        return self.path / "environment.json"

    # Training of the denoiser; `checkpoints.components` writes and reads the components.

    @property
    def autoencoder(self) -> Path:
        """Weights of the autoencoder: the frozen one of a denoiser, or the result of an autoencoder's training."""
        return self.path / "autoencoder.safetensors"

    @property
    def identity_encoder(self) -> Path:
        """Weights of the identity encoder that the denoiser is conditioned on."""
        return self.path / "identity_encoder.safetensors"

    @property
    def expression_encoder(self) -> Path:
        """Weights of the expression encoder of the denoiser."""
        return self.path / "expression_encoder.safetensors"

    @property
    def onnx_expression_encoder(self) -> Path:
        """Description of an expression encoder in ONNX, in place of `expression_encoder`; its network lies beside it,
        with the suffix .onnx."""
        return self.path / "expression_encoder.json"

    @property
    def word_prototypes(self) -> Path:
        """The vectors of words, of a denoiser whose expressions are the vectors of its expression encoder."""
        return self.path / "word_prototypes.safetensors"

    @property
    def prompts(self) -> Path:
        """The prompt table: text embeddings of all prompts, of a denoiser that reads prompts."""
        return self.path / "prompts.safetensors"

    @property
    def latent_range(self) -> Path:
        """What is usual among the training images, by which unfamiliar references are recognised; absent if there were
        too few people, or in folders of earlier versions."""
        return self.path / "latent_range.safetensors"

    @property
    def teacher(self) -> Path:
        """Weights of the teacher, of a student's training; sampling does not read them."""
        return self.path / "teacher.safetensors"

    @property
    def frozen_networks(self) -> list[Path]:
        """The files of the frozen networks that a denoiser may be trained with; not all are there."""
        onnx = self.onnx_expression_encoder
        return [self.autoencoder, self.identity_encoder, self.expression_encoder, onnx, onnx.with_suffix(".onnx")]

    @property
    def components(self) -> list[Path]:
        """The files of frozen components that are there: all that a sampler reads beside a checkpoint."""
        files = [*self.frozen_networks, self.word_prototypes, self.prompts, self.latent_range]
        return [file for file in files if file.exists()]

    @property
    def features(self) -> Path:
        """Cached features of the training images. The file that is written has a digest of images and networks in its
        name, `features-<digest>.npy`; see `data.cached_features`."""
        return self.path / "features.npy"

    def share_features(self, source: RunDir) -> None:
        """Links the cached features of another run into this folder, so that they are not computed again.

        A file's name tells which images and networks it belongs to, so one that does not belong to this run is not
        used. Nothing is linked where the file system cannot.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for file in source.path.glob(source.features.with_stem(f"{source.features.stem}-*").name):
            with contextlib.suppress(OSError):
                os.link(file, self.path / file.name)

    @property
    def probe_plot(self) -> Path:
        """Plot of the conditioning probe over the whole run."""
        return self.path / "probe.png"

    # Training of a face encoder

    def encoder_weights(self, name: str) -> Path:
        """Weights of the trained face encoder, by the name that the run gives it."""
        return self.path / f"{name}.safetensors"

    @property
    def report(self) -> Path:
        """The held-out report of a trained face encoder, as JSON."""
        return self.path / "report.json"

    @property
    def avatars(self) -> Path:
        """Rendered avatars. The folder that is written has a digest of the settings in its name, `avatars-<digest>`;
        see `data.sources.stored`."""
        return self.path / "avatars"

    def moved(self, config: Run) -> list[Change]:
        """Settings with a path that differ from those of the run that the folder holds. Empty as long as there is no
        checkpoint.

        Raises:
            ConfigError: `config.json` is damaged.
        """
        if not (self.has_checkpoint and self.config.exists()):
            return []
        return [change for change in self._changed(config) if change.may_move]

    def refusal(self, changes: list[str]) -> ConfigError:
        """The error for a folder that holds a run with other settings, one line each."""
        return ConfigError(
            f"holds a run with other settings ({'; '.join(changes)}); use another folder, or the same settings to "
            "continue it",
            field="workdir",
            found=self.path,
        )

    def _changed(self, config: Run) -> list[Change]:
        """Fields that differ from `config.json` and may not just change."""
        try:
            before = from_json(type(config), self.config.read_text("utf-8"))
        except OSError as e:
            raise ConfigError(f"{self.config}: {e.strerror}") from e
        except (ConfigError, UnicodeDecodeError, RecursionError) as e:
            raise ConfigError(
                f"{self.config}: not the settings of a run of this kind ({e}); restore the file",
                field="workdir",
                found=self.path,
            ) from e
        return [change for change in differences(before, config) if not change.may_change]

    def _replaced(self, config: Run) -> str | None:
        """What a start without checkpoint changes in `config.json`; None if nothing."""
        if not self.config.exists():
            return None
        try:
            changed = self._changed(config)
        except ConfigError as e:
            return f"{self.config.name} holds {e.reason.partition(': ')[2]}" if e.field else str(e)
        return "; ".join(change.line for change in changed) or None
