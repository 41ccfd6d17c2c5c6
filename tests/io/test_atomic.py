"""Files and folders appear complete or not at all, and leave nothing beside them."""

import errno
import os
import threading
from pathlib import Path

import pytest

from genaffect_jax.io import atomic
from genaffect_jax.io.atomic import copy_atomically, new_file, new_folder, remove_partial, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_into_a_folder_that_did_not_exist(tmp_path):
    write_atomically(tmp_path / "a" / "b.txt", "joie de vivre é\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "joie de vivre é\n".encode()
    assert names(tmp_path / "a") == ["b.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_file_stands_and_nothing_else_is_left(tmp_path, error):
    target = tmp_path / "report.json"
    target.write_text("old")

    def fail():
        with new_file(target) as temporary:
            temporary.write_text("half")
            assert target.read_text() == "old"
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


def test_a_failed_copy_names_the_target_and_not_its_source(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))  # as shutil does

    monkeypatch.setattr(atomic.shutil, "copyfile", fail)
    with pytest.raises(OSError, match="No space left") as raised:
        copy_atomically(tmp_path / "weights", tmp_path / "copy")
    assert (raised.value.filename, raised.value.filename2) == (str(tmp_path / "copy"), None)


def test_partial_files_of_a_target_are_removed_and_no_others(tmp_path):
    target = tmp_path / "a[1].npy"
    with new_file(target) as temporary:
        temporary.write_text("complete")
        partial = temporary.name
    for name in (partial, "a[1].npy.tmp", ".a1.npy.0123abcd.tmp", ".b.npy.0123abcd.tmp"):
        (tmp_path / name).write_text("half")
    remove_partial(target)
    assert names(tmp_path) == [".a1.npy.0123abcd.tmp", ".b.npy.0123abcd.tmp", "a[1].npy", "a[1].npy.tmp"]


def test_a_failed_write_names_the_target_and_not_the_temporary_file(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(tmp_path / "weights", b"12", durable=True)
    assert error.value.filename == str(tmp_path / "weights")
    assert names(tmp_path) == []


def test_a_failed_probe_of_the_permissions_names_the_target_too(tmp_path, monkeypatch):
    def full_disk(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(atomic.os, "open", full_disk)
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(tmp_path / "weights", b"12")
    assert error.value.filename == str(tmp_path / "weights")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as error:
        write_atomically(tmp_path / "file" / "report.json", "")
    assert str(error.value.filename) == str(tmp_path / "file")


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        copy_atomically(tmp_path / "missing", tmp_path / "copy")
    assert str(error.value.filename) == str(tmp_path / "missing")


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    contents = [bytes([n]) * 100_000 for n in range(8)]
    writers = [threading.Thread(target=write_atomically, args=(tmp_path / "file", c)) for c in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "sets" / "seven"
    with new_folder(target) as new:
        (new / "set.json").write_text("{}")
        assert not target.exists()
    assert names(target) == ["set.json"]
    assert names(target.parent) == ["seven"]


def test_after_an_error_the_old_folder_stands(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "old.png").write_text("old")

    def fail():
        with new_folder(target, replace=True) as new:
            (new / "new.png").write_text("new")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert names(target) == ["old.png"]
    assert names(tmp_path) == ["set"]


def test_an_old_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "old.png").write_text("old")
    with new_folder(target, replace=True) as new:
        (new / "new.png").write_text("new")
    assert names(target) == ["new.png"]
    assert names(tmp_path) == ["set"]


def test_a_folder_is_not_replaced_unasked(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "old.png").write_text("old")
    with pytest.raises(OSError, match="set"), new_folder(target) as new:
        (new / "new.png").write_text("new")
    assert names(target) == ["old.png"]
    assert names(tmp_path) == ["set"]


def test_the_old_files_come_back_if_a_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "set"
    target.mkdir()
    (target / "old.png").write_text("old")
    rename = os.rename

    def refuse_last(source, destination):
        if os.path.basename(source) == "b.png":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, destination)

    def write():
        with new_folder(target, replace=True) as new:
            (new / "a.png").write_text("new")
            (new / "b.png").write_text("new")

    monkeypatch.setattr(atomic.os, "rename", refuse_last)
    with pytest.raises(OSError, match="Input/output"):
        write()
    assert names(target) == ["old.png"]
    assert names(tmp_path) == ["set"]


def test_a_folder_that_exists_stays_itself_with_its_mode_and_links_to_it(tmp_path, monkeypatch):
    target = tmp_path / "export"
    target.mkdir()
    target.chmod(0o2775)
    (tmp_path / "link").symlink_to("export")
    before = target.stat()
    monkeypatch.chdir(target)
    for place in (tmp_path / "link", target, Path()):
        with new_folder(place, replace=True) as new:
            (new / "file").write_text("new")
            (new / "below").mkdir()
        assert names(target) == ["below", "file"]
    after = target.stat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert (tmp_path / "link").is_symlink()
