"""An export that is killed while it replaces another: a reader finds the old one, the new one, or no index."""

import os
import shutil

import pytest

from genaffect_jax.errors import ConfigError, InUseError
from genaffect_jax.export.checksums import is_as_written, require_replaceable, write_checksums
from genaffect_jax.io import exchange
from genaffect_jax.io.atomic import new_folder
from genaffect_jax.io.exchange import STAGE
from genaffect_jax.io.lock import locked

INDICES = ("model_index.json", "parity.json")
CHANGES = ("rename", "unlink", "rmdir", "mkdir", "replace")


class Killed(BaseException):
    """Ends the process at a call: nothing behind it runs."""


def fill(folder, version):
    for name in (*INDICES, "README.md", "pipeline.py", "weights/config.json", "weights/model", f"only_{version}"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(version)
    write_checksums(folder)


def content(folder):
    """Every version that the folder's files are of, and whether all indices are there."""
    files = [f for f in folder.rglob("*") if f.is_file() and STAGE not in str(f) and f.name != "SHA256SUMS"]
    versions = {f.read_text() for f in files if f.name != exchange.LOCK_FILE}
    return versions, [name for name in INDICES if (folder / name).exists()]


def killed_at(call, monkeypatch, work):
    """Whether `work` reached this call of a function that changes a folder; it and all later calls do nothing."""
    count = 0

    def counted(function):
        def changing(*arguments, **options):
            nonlocal count
            count += 1
            if count > call:
                raise Killed
            return function(*arguments, **options)

        return changing

    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        except Killed:
            return True
    return False


def test_a_reader_never_meets_two_versions_and_the_next_export_succeeds(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def export(version):
        require_replaceable(out, True)
        with new_folder(out, replace=True) as new:
            fill(new, version)

    seen, call = set(), 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        fill(out, "old")
        if not killed_at(call, monkeypatch, lambda: export("new")):
            break
        versions, indices = content(out)
        if indices:
            assert len(versions) == 1, (call, versions, indices)
        seen.add((*sorted(versions), bool(indices)))
        require_replaceable(out, True)  # restores
        versions, indices = content(out)
        assert len(versions) == 1, call
        assert indices == [*INDICES]
        assert is_as_written(out)
        assert not list(out.glob(f"{STAGE}*"))
        export("third")
        assert content(out) == ({"third"}, [*INDICES])
        call += 1
    assert {("old", True), ("new", True), ("old", False), ("new", False)} <= seen


def test_a_restoration_that_is_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    """At every call of the restoration of an exchange that was killed in its middle."""
    out = tmp_path / "out"

    def export():
        with new_folder(out, replace=True) as new:
            fill(new, "new")

    call = 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        fill(out, "old")
        assert killed_at(24, monkeypatch, export)
        assert content(out)[1] == []
        killed = killed_at(call, monkeypatch, lambda: require_replaceable(out, True))
        require_replaceable(out, True)
        assert content(out) == ({"old"}, [*INDICES])
        assert is_as_written(out)
        if not killed:
            break
        call += 1
    assert call > 3


def test_a_file_that_somebody_made_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")

    def export():
        with new_folder(out, replace=True) as new:
            fill(new, "new")

    assert killed_at(24, monkeypatch, export)
    (out / "model_index.json").write_text("mine")
    with pytest.raises(OSError, match="File exists"):
        require_replaceable(out, True)
    assert (out / "model_index.json").read_text() == "mine"
    assert list(out.glob(f"{STAGE}*/old/model_index.json"))


def test_two_processes_do_not_fill_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(InUseError, match="in use by process"), new_folder(tmp_path, replace=True):
        pass


def test_a_folder_in_which_something_else_lies_is_refused_before_it_is_filled(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        require_replaceable(tmp_path, True)
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path):
        pytest.fail("was filled")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
