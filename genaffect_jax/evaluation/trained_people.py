"""People in an image folder that a model was trained on, as far as its run folder tells."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.groups import is_held_out, split_identities
from genaffect_jax.data.sources.folder import FolderSource


def trained_people(source: FolderSource, config: DenoiserRun, run_dir: RunDir) -> frozenset[str]:
    """The people of a folder whose images a training used, without those that it held out.

    A training records the digest of every file that it used. A file with the same content is one of them, whatever its
    name and folder are.

    Args:
        source: the folder.
        config: the run that trained the model.
        run_dir: its folder.
    """
    data, seed = config.data, config.train.seed
    if data.source != "folder" or data.root is None:
        return frozenset()
    recorded = _recorded_digests(run_dir.checked)
    here = data.root.resolve() == source.root.resolve()
    used = {
        example.identity
        for file, example in zip(source.files, source.examples, strict=True)
        # Without a record (`export merge`, an earlier version) all files of the same folder count.
        if (here and not recorded) or _digest(source.root / file) in recorded
    }
    if here:
        return frozenset(used - set(split_identities(source, data.holdout, seed)[1]))
    # Of another folder it is not known who else was trained on: the rule alone, without its exceptions.
    return frozenset(name for name in used if not is_held_out(name, data.holdout, seed))


def _recorded_digests(record: Path) -> set[str]:
    """SHA-256 of each file that was decoded; nothing if there is no record, or one without digests."""
    try:
        files = json.loads(record.read_text("utf-8"))["files"].values()
        return {digest for _, digest, _ in files if isinstance(digest, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None  # deleted since; reading it gives the reason
