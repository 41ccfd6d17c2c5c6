"""Which settings of a run may change when it continues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Fields that may differ when a run continues. What is learned depends on them in the order of sums alone; on
# `train.steps` also through the learning rate's schedule, which a longer training has to follow.
_MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.sample_every",
    "train.probe_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.max_consecutive_skips",
    "train.profile_at",
    "train.deterministic",
    "sampling.steps",
    "sampling.solver",
    "sampling.guidance_identity",
    "sampling.guidance_expression",
    "sampling.consistency",
    "data.workers",
    "data.device_cache_gib",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "stored",
)
# Settings that name files or folders: what they hold decides, not where it lies (`checkpoints.sources`).
_MAY_MOVE = (
    "data.root",
    "model.autoencoder_weights",
    "model.transformer_weights",
    "model.identity_encoder",
    "model.expression_encoder",
    "text.embeddings",
    "auxiliary.identity_encoder",
    "auxiliary.expression_encoder",
    "distillation.teacher",
    "degrade.autoencoder",
)


@dataclass(frozen=True)
class Change:
    """A setting that is not what it was."""

    field: str
    """Its name, with dots."""
    before: Any
    """Value in `config.json`."""
    now: Any
    """Value that was given."""

    @property
    def line(self) -> str:
        """Name and both values."""
        return f"{self.field}={self.before}, now {self.now}"

    @property
    def may_change(self) -> bool:
        """Whether a run may continue with the new value, whatever it is."""
        return self.field in _MAY_CHANGE

    @property
    def may_move(self) -> bool:
        """Whether the setting names a file or folder that may lie elsewhere now."""
        return self.field in _MAY_MOVE and bool(self.before) and bool(self.now)


def differences(before: Any, now: Any, name: str = "") -> list[Change]:
    """All fields in which two configurations of one class differ, nested ones with dots."""
    if hasattr(before, "__dataclass_fields__"):
        return [
            change
            for field in before.__dataclass_fields__
            for change in differences(getattr(before, field), getattr(now, field), f"{name}.{field}".lstrip("."))
        ]
    return [] if before == now else [Change(name, before, now)]
