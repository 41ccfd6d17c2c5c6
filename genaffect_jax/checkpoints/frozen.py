"""The parameters of the trained network that are not trained: written once, before the first checkpoint (orbax)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp

from genaffect_jax.checkpoints.digests import files_below, record_files, require_frozen_intact
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.errors import CheckpointError
from genaffect_jax.models.functional import Parameters
from genaffect_jax.parallel.distributed import is_first


class FrozenParams:
    """`RunDir.frozen_params`, which may be nearly all of a model; absent if all parameters are trained."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir, self._folder = run_dir, run_dir.frozen_params
        self._compared = False

    def save(self, parameters: Parameters) -> None:
        """Writes them, with their digests, and waits: no checkpoint may be complete without them. A folder left by a
        run that ended before its first checkpoint is replaced, or removed if there are none now."""
        if not parameters:
            if is_first():
                shutil.rmtree(self._folder, ignore_errors=True)
            return
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(self._folder, parameters, force=True)
            checkpointer.wait_until_finished()
        if is_first():
            record_files(self._run_dir, files_below(self._folder))

    def names(self) -> frozenset[str]:
        """Their names; none if the folder is absent.

        Raises:
            CheckpointError: a file is damaged.
        """
        if not self._folder.is_dir():
            return frozenset()
        self._compare()
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return frozenset(checkpointer.metadata(self._folder).item_metadata.tree)
        except Exception as e:  # orbax raises ValueError, KeyError, AttributeError, OSError, or Exception itself
            raise CheckpointError(f"{self._folder}: is damaged: {_line(e)}") from e

    def restore(self, abstract: Mapping[str, Any]) -> Parameters:
        """Those that `abstract` names, placed as it says.

        Raises:
            CheckpointError: they are missing, damaged, or do not fit.
        """
        if not abstract:
            return {}
        self._compare()
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(self._folder, abstract)
        except Exception as e:  # as above, and tensorstore's
            raise CheckpointError(f"{self._folder}: does not fit this configuration, or is damaged: {_line(e)}") from e

    def _compare(self) -> None:
        if not self._compared:
            require_frozen_intact(self._run_dir)
            self._compared = True


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
