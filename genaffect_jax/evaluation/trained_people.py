"""People in an image folder that a model was trained on, as far as its run folder tells."""

from __future__ import annotations

import json
from pathlib import Path

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.groups import is_held_out, split_identities
from genaffect_jax.data.sources.folder import FolderSource


def trained_people(source: FolderSource, config: DenoiserRun, run_dir: RunDir) -> frozenset[str]:
    """The people of a folder whose images a training used, without those that it held out.

    A training records its folder and the path and size of every file in it. A file of the same folder and path, or of
    the same path and size in another folder (a copy), is one that it used. Renamed copies are not recognised.

    Args:
        source: the folder.
        config: the run that trained the model.
        run_dir: its folder.
    """
    data, seed = config.data, config.train.seed
    if data.source != "folder" or data.root is None:
        return frozenset()
    sizes = _recorded_sizes(run_dir.checked)
    here = data.root.resolve() == source.root.resolve()
    used = {
        example.identity
        for file, example in zip(source.files, source.examples, strict=True)
        # A folder written by `export merge` has no record: of the same folder all files count.
        if (here and (not sizes or file in sizes)) or sizes.get(file) == _size(source.root / file)
    }
    if here:
        return frozenset(used - set(split_identities(source, data.holdout, seed)[1]))
    # Of another folder it is not known who else was trained on: the rule alone, without its exceptions.
    return frozenset(name for name in used if not is_held_out(name, data.holdout, seed))


def _recorded_sizes(record: Path) -> dict[str, int]:
    """Path and size of each file that was decoded; nothing if there is no record."""
    try:
        return {file: verdict[0] for file, verdict in json.loads(record.read_text("utf-8"))["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None  # deleted since; reading it gives the reason
