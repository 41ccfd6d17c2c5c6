"""The checksums of an exported folder, by which it may be replaced: it holds what was written and nothing else."""

from __future__ import annotations

from pathlib import Path

from genaffect_jax.errors import ConfigError
from genaffect_jax.io.destination import why_not_writable
from genaffect_jax.io.exchange import STAGE, is_part_of_exchange, undo_killed_exchange
from genaffect_jax.io.lock import locked
from genaffect_jax.io.weight_file import checksum

CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Writes `SHA256SUMS` of all files in the folder, as `sha256sum --check` reads it."""
    (folder / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in _sums(folder).items()))


def is_as_written(folder: Path) -> bool:
    """Whether the folder's files are those of its `SHA256SUMS`: nothing changed, and nothing of somebody else's."""
    file = folder / CHECKSUMS
    if not file.is_file():
        return False
    listed = {line[66:]: line[:64] for line in file.read_text(encoding="utf-8", errors="replace").splitlines()}
    # Names first, as digests of a large model take long.
    return listed.keys() == set(_names(folder)) and listed == _sums(folder)


def require_replaceable(out: Path, overwrite: bool) -> None:
    """Checks that an export can be written to a folder; what a killed one left there is put right first.

    Raises:
        ConfigError: `out` cannot be written to, or is neither new nor empty nor an export in which nothing changed.
        InUseError: another process is exporting to it.
    """
    reason = why_not_writable(out)
    if reason is not None:
        raise ConfigError(reason, field="out", found=out)
    if any(out.glob(f"{STAGE}*")):  # an export that was killed while it took its place
        with locked(out):
            undo_killed_exchange(out)
    if not out.exists() or (out.is_dir() and all(is_part_of_exchange(path.name) for path in out.iterdir())):
        return
    if not overwrite:
        raise ConfigError("is not empty; name a new folder, or set overwrite", field="out", found=out)
    if not is_as_written(out):
        reason = f"holds other files than an export wrote (see its {CHECKSUMS}); they are not replaced"
        raise ConfigError(reason, field="out", found=out)


def _names(folder: Path) -> list[str]:
    files = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    return sorted(name for name in files if name != CHECKSUMS and not is_part_of_exchange(name))


def _sums(folder: Path) -> dict[str, str]:
    return {name: checksum(folder / name) for name in _names(folder)}
