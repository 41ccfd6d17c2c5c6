"""Digests of what a run folder holds: written when a file is written, compared when it is read.

Two records, both JSON and both optional, as folders of earlier versions have none:

- `RunDir.digests` names the components, the frozen parameters and the contents that settings with a path stood for.
- `RunDir.checkpoint_digests(step)` names the array files of one checkpoint, and its step.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.errors import CheckpointError, WeightsError
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.parallel.distributed import is_first

_MOST_THREADS = 8
_FILES, _SOURCES, _STEP = "files", "sources", "step"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of all files below a folder with their names; where it lies does not matter.

    Raises:
        WeightsError: it is missing, or a file cannot be read.
    """
    try:
        return _content_digest(path)
    except OSError as e:
        raise WeightsError(f"{e.filename or path}: {e.strerror or e}") from e


def _content_digest(path: Path) -> str:
    if not path.is_dir():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in files_below(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\0".encode())
    return digest.hexdigest()


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names)


@dataclass(frozen=True)
class RunDigests:
    """What `RunDir.digests` holds."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Digests by file, as paths below the run folder."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Digests of what settings with a path stood for when the run began, by the setting's name."""

    @classmethod
    def read(cls, run_dir: RunDir) -> RunDigests:
        """The record of a run folder; an empty one if there is none.

        Raises:
            CheckpointError: the record is damaged.
        """
        try:
            found = json.loads(run_dir.digests.read_text("utf-8"))
            return cls(*({str(k): str(v) for k, v in found[name].items()} for name in (_FILES, _SOURCES)))
        except FileNotFoundError:
            return cls()
        except OSError as e:
            raise CheckpointError(f"{run_dir.digests}: {e.strerror}") from e
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise CheckpointError(
                f"{run_dir.digests}: damaged ({type(e).__name__}); restore it, or remove it to go on without digests"
            ) from e

    def write(self, run_dir: RunDir) -> None:
        """Writes the record; of several processes the first does."""
        if is_first():
            content = {_FILES: dict(self.files), _SOURCES: dict(self.sources)}
            write_atomically(run_dir.digests, json.dumps(content, indent=2) + "\n")


def record_files(run_dir: RunDir, files: Iterable[Path], contents: Mapping[Path, Path] | None = None) -> None:
    """Records the digests of files that this process has just written below the run folder; of several processes the
    first writes them.

    Args:
        run_dir: the run folder.
        files: the files.
        contents: files of the folder that are left out, and where else their contents lie.
    """
    if is_first():
        known = RunDigests.read(run_dir)
        lying = {**{file: file for file in files}, **(contents or {})}
        new = {file.relative_to(run_dir.path).as_posix(): file_digest(source) for file, source in lying.items()}
        RunDigests({**known.files, **new}, known.sources).write(run_dir)


def remove_file(run_dir: RunDir, file: Path) -> None:
    """Removes a file of the run folder, if it is there, and its record."""
    file.unlink(missing_ok=True)
    known, name = RunDigests.read(run_dir), file.relative_to(run_dir.path).as_posix()
    if name in known.files:
        RunDigests({n: d for n, d in known.files.items() if n != name}, known.sources).write(run_dir)


def is_recorded(run_dir: RunDir, file: Path, digest: str | None = None) -> bool:
    """Whether the digest of a file of the run folder is recorded; if one is given, whether it is that one."""
    found = RunDigests.read(run_dir).files.get(file.relative_to(run_dir.path).as_posix())
    return found is not None if digest is None else found == digest


def require_intact(run_dir: RunDir, file: Path) -> None:
    """Compares a file of the run folder with its recorded digest; one without a record only has to be readable.

    Raises:
        WeightsError: the file cannot be read, or its content is not what was written.
    """
    recorded = RunDigests.read(run_dir).files.get(file.relative_to(run_dir.path).as_posix())
    try:
        if recorded is None:
            file.open("rb").close()
        elif file_digest(file) != recorded:
            raise WeightsError(
                f"{file}: damaged: the content is not what was written (by its SHA-256 in {run_dir.digests.name}); "
                "restore it from a copy"
            )
    except OSError as e:
        raise WeightsError(f"{file}: {os.strerror(e.errno) if e.errno else e}") from e


def require_frozen_intact(run_dir: RunDir) -> None:
    """Compares `RunDir.frozen_params` with its recorded digests, if there are any.

    Raises:
        CheckpointError: a file is missing, cannot be read, or its content is not what was written; it is named.
    """
    prefix = f"{run_dir.frozen_params.name}/"
    recorded = {name: d for name, d in RunDigests.read(run_dir).files.items() if name.startswith(prefix)}
    _compare(run_dir.path, recorded)


def write_checkpoint_digests(folder: Path, record: Path, step: int) -> None:
    """Records the files of a checkpoint's items, and its step.

    Args:
        folder: the checkpoint, which may still have its temporary name.
        record: the file to write.
        step: its step.
    """
    # Only items: files of the checkpoint's folder itself are orbax's, which still changes them.
    files = [file for file in files_below(folder) if file.parent != folder]
    with _hashing() as pool:
        digests = dict(
            zip((f.relative_to(folder).as_posix() for f in files), pool.map(file_digest, files), strict=True)
        )
    content = {_STEP: step, _FILES: digests}
    write_atomically(record, json.dumps(content) + "\n")


def require_checkpoint_intact(folder: Path, record: Path, step: int, items: Collection[str]) -> None:
    """Compares items of a checkpoint with their digests, and its step with the recorded one. A checkpoint without a
    record passes. Several processes share the work and must call this in step.

    Args:
        folder: the checkpoint.
        record: its file of digests.
        step: the step that the folder's name says.
        items: names of the items that are to be read.

    Raises:
        CheckpointError: the checkpoint is that of another step, or a file is missing or damaged; it is named.
    """
    try:
        found = json.loads(record.read_text("utf-8"))
        saved, files = found[_STEP], {str(name): str(digest) for name, digest in found[_FILES].items()}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{record}: damaged ({type(e).__name__})") from e
    if saved != step:
        raise CheckpointError(f"{folder}: is the checkpoint of step {saved} under another name")
    _compare(folder, {name: digest for name, digest in files.items() if name.split("/")[0] in items})


def _compare(folder: Path, recorded: Mapping[str, str]) -> None:
    """Compares files with their digests; each of several processes takes some, and all of them raise."""
    share = sorted(recorded.items())[jax.process_index() :: jax.process_count()]
    with _hashing() as pool:
        problems = pool.map(lambda entry: _problem(folder / entry[0], entry[1]), share)
        bad = next((problem for problem in problems if problem is not None), None)
    if jax.process_count() > 1:
        fine = multihost_utils.process_allgather(np.array(bad is None))
        if not fine.all() and bad is None:
            bad = f"{folder}: process {int(np.argmin(fine))} finds a file whose content is not what was written"
    if bad is not None:
        raise CheckpointError(bad)


def _problem(file: Path, digest: str) -> str | None:
    try:
        return None if file_digest(file) == digest else f"{file}: the content is not what was written (by its SHA-256)"
    except OSError as e:
        return f"{file}: {os.strerror(e.errno) if e.errno else e}"


def _hashing() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))  # hashlib works without the GIL
