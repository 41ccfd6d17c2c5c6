"""The source of images that a configuration names. A new kind of source is one class and one line here; see
docs/guide/data.md#adding-a-source."""

from __future__ import annotations

from pathlib import Path

from genaffect_jax.config import DataConfig
from genaffect_jax.data.sources.base import Source
from genaffect_jax.data.sources.folder import FolderRecords, open_folder
from genaffect_jax.data.sources.layouts import require_folder
from genaffect_jax.data.sources.procedural import ProceduralSource
from genaffect_jax.errors import DataError


def check_source(config: DataConfig) -> None:
    """Checks that the folder of images exists, before a run writes anything.

    Raises:
        DataError: it is missing, or not a folder.
    """
    if config.source == "folder":
        if config.root is None:
            raise DataError("source 'folder' needs a folder of images", field="data.root")
        require_folder(Path(config.root))


def open_source(config: DataConfig, records: FolderRecords) -> Source:
    """Opens the source that `config` names; all files of a folder are checked once.

    Args:
        config: see `DataConfig`.
        records: files that source `folder` writes, those of the run folder (`checkpoints.run_dir.RunDir`).

    Raises:
        DataError: the folder cannot be used; see `data.sources.folder.open_folder`.
    """
    if config.source == "procedural":
        return ProceduralSource(
            config.image_size, config.identities, config.expressions_per_identity, config.pose_scale
        )
    check_source(config)
    assert config.root is not None
    return open_folder(Path(config.root), config.image_size, config.max_rejected, records)
