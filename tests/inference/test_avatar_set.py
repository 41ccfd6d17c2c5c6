"""Sets in folders: nothing of others is lost, and one whole set stands there at every moment."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from support.avatar_sets import SETTINGS

from genaffect_jax.errors import ConfigError, DataError, InUseError, OutputError
from genaffect_jax.expressions.grammar import parse_expressions
from genaffect_jax.inference import avatar_set
from genaffect_jax.inference.avatar_set import AvatarSet
from genaffect_jax.inference.set_folder import check_output
from genaffect_jax.io import file_set
from genaffect_jax.io.lock import LOCK_FILE, locked


def make(words: str, colour: int = 0) -> AvatarSet:
    expressions = tuple(parse_expressions(words))
    images = np.random.default_rng(colour).integers(0, 256, (len(expressions), 8, 8, 3), np.uint8)
    return AvatarSet(np.full((1, 8, 8, 3), 7, np.uint8), images, expressions, (), SETTINGS)


def add(avatars: AvatarSet, words: str, colour: int = 9) -> AvatarSet:
    more = make(words, colour)
    return dataclasses.replace(
        avatars,
        images=np.concatenate([avatars.images, more.images]),
        expressions=(*avatars.expressions, *more.expressions),
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def shown(folder: Path) -> list[str]:
    return [e.name for e in AvatarSet.load(folder).expressions]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a set of joy and fear."""
    make("joy, fear").save(tmp_path / "set")
    return tmp_path / "set"


def test_a_set_is_read_as_it_was_saved(folder):
    read, saved = AvatarSet.load(folder), make("joy, fear")
    np.testing.assert_array_equal(read.images, saved.images)
    np.testing.assert_array_equal(read.references, saved.references)
    assert read.settings == saved.settings
    assert names(folder) == ["01_joy.png", "02_fear.png", "reference.png", "set.json", "sheet.png"]


def test_files_of_others_beside_a_set_stay_as_they_are(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "src").mkdir()
    (folder / "src" / "thesis.tex").write_text("mine")
    (folder / "09_own.png").write_bytes(b"mine")
    make("anger").save(folder)
    assert names(folder) == ["01_anger.png", "09_own.png", "notes.txt", "reference.png", "set.json", "sheet.png", "src"]
    assert (folder / "notes.txt").read_text() == (folder / "src" / "thesis.tex").read_text() == "mine"
    assert (folder / "09_own.png").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["03_anger.png", "morph.gif", "01_joy_2.png"])
def test_a_file_of_somebody_else_keeps_its_name_and_content(folder, name):
    (folder / name).write_bytes(b"mine")
    make("joy, fear, anger").save(folder, "gif")
    make("joy, fear, anger").save(folder, "gif")
    assert (folder / name).read_bytes() == b"mine"
    assert shown(folder) == ["joy", "fear", "anger"]
    assert len(names(folder)) == 8


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds files that are no avatar set (src/, thesis.txt)"),
        ("{}", "set.json: has no model"),
        ("[1]", "set.json: is list, must be an object"),
        ("null", "set.json: is NoneType, must be an object"),
        ("no JSON", "set.json is no JSON"),
        ("[" * 100_000, "set.json is no JSON"),
        ('{"name": "Set", "images": ["thesis.txt"]}', "set.json: has no model"),
    ],
)
def test_a_folder_without_a_set_is_refused_and_keeps_everything(tmp_path, content, words):
    (tmp_path / "src").mkdir()
    (tmp_path / "thesis.txt").write_text("mine")
    if content is not None:
        (tmp_path / "set.json").write_text(content)
    before = names(tmp_path)
    with pytest.raises(ConfigError) as error:
        make("joy").save(tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == before


def test_a_description_without_its_images_is_no_set(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    (folder / "set.json").rename(tmp_path / "other" / "set.json")
    with pytest.raises(ConfigError, match=r"images \(01_joy.png, ...\) are not there, and set.json, thesis.txt"):
        check_output(tmp_path / "other")


@pytest.mark.parametrize(
    "name", ["../thesis.png", "/etc/thesis.png", "a/b.png", "..", "thesis.txt", "", None, 3, ".png"]
)
@pytest.mark.parametrize("entry", ["references", "images", "files"])
def test_a_description_that_names_files_elsewhere_is_refused(folder, tmp_path, entry, name):
    (tmp_path / "thesis.png").write_text("mine")
    found = json.loads((folder / "set.json").read_text())
    found[entry] = [{**found["images"][0], "file": name}] if entry == "images" else [name]
    (folder / "set.json").write_text(json.dumps(found))
    if name != ".png":
        with pytest.raises(DataError, match="is no image file in the set's folder"):
            AvatarSet.load(folder)
        with pytest.raises(ConfigError, match="is no image file in the set's folder"):
            make("anger").save(folder)
    assert (tmp_path / "thesis.png").read_text() == "mine"


@pytest.mark.parametrize("left", ["lost+found", ".DS_Store", LOCK_FILE, ".genaffect-new.0123abcd"])
def test_what_systems_leave_in_an_empty_folder_does_not_count(tmp_path, left):
    (tmp_path / left).mkdir()
    check_output(tmp_path)


def test_a_set_from_before_its_files_were_listed_is_replaced_whole(folder):
    make("joy, fear").save(folder, "gif")
    found = json.loads((folder / "set.json").read_text())
    del found["files"]
    (folder / "set.json").write_text(json.dumps(found))
    make("anger").save(folder)
    assert names(folder) == ["01_anger.png", "reference.png", "set.json", "sheet.png"]


def test_an_existing_folder_stays_the_folder_that_it_is(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target").chmod(0o2775)
    (tmp_path / "link").symlink_to("target")
    before = (tmp_path / "target").stat()
    make("joy").save(tmp_path / "link")
    make("fear").save(tmp_path / "link")
    after = (tmp_path / "target").stat()
    assert (tmp_path / "link").is_symlink()
    assert (after.st_ino, after.st_mode, after.st_gid) == (before.st_ino, before.st_mode, before.st_gid)
    assert stat.S_IMODE(after.st_mode) == 0o2775
    assert shown(tmp_path / "target") == ["fear"]


def test_a_link_to_a_folder_that_does_not_exist_yet_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("later")
    make("joy").save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert shown(tmp_path / "later") == ["joy"]


def test_the_current_folder_is_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ("joy", "fear, joy"):
        make(words).save(Path())
        assert [e.name for e in AvatarSet.load(Path()).expressions] == words.split(", ")


@pytest.mark.parametrize("way", ["file", "below a file", "circle"])
def test_what_can_be_no_folder_is_refused(tmp_path, way):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to("circle")
    out = {"file": "file", "below a file": "file/set", "circle": "circle"}[way]
    with pytest.raises(ConfigError, match=r"is a file|circle"):
        check_output(tmp_path / out)


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_takes_no_files_is_refused_beforehand(tmp_path, monkeypatch, code, exists):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    if exists:
        (tmp_path / "set").mkdir()
    with pytest.raises(ConfigError, match=f"cannot be written to: {os.strerror(code)}"):
        check_output(tmp_path / "set")
    assert names(tmp_path) == ["set"] * exists


def killed_at_every_call(start: Path, save, check) -> int:
    """Saves in a copy of `start`, killed at the first call that changes the folder, at the second, and so on.

    Args:
        start: the folder before.
        save: saves in a folder; run in a child process.
        check: looks at what the killed process left.

    Returns:
        The number of calls that a whole save makes.
    """
    for calls in range(10_000):
        place = start.with_name(f"killed_{calls}")
        shutil.copytree(start, place, symlinks=True)
        child = os.fork()
        if child == 0:
            try:
                kill_after(calls)
                save(place)
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        check(place)
        if status == 0:
            return calls
        assert os.WIFSIGNALED(status)
    raise AssertionError("never ends")


def kill_after(calls: int) -> None:
    left = [calls]

    def counted(function):
        def call(*arguments, **named):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*arguments, **named)

        return call

    for name in ("rename", "replace", "unlink", "link", "mkdir", "rmdir", "open", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))


def test_a_killed_save_leaves_the_old_set_or_the_new_one_and_the_next_save_cleans_up(folder):
    old, new = AvatarSet.load(folder), make("anger, fear, joy", 5)
    (folder / "notes.txt").write_text("mine")
    seen = []

    def check(place: Path) -> None:
        found = AvatarSet.load(place)
        assert any(np.array_equal(found.images, one.images) for one in (old, new))
        seen.append(len(found.images))
        assert (place / "notes.txt").read_text() == "mine"
        make("pride", 6).save(place)
        assert names(place) == ["01_pride.png", "notes.txt", "reference.png", "set.json", "sheet.png"]

    assert killed_at_every_call(folder, new.save, check) > 30
    assert seen == sorted(seen)
    assert set(seen) == {2, 3}


def test_after_two_killed_saves_the_set_is_whole_too(folder):
    first, second = make("anger, fear, joy", 5), make("pride", 6)
    between = []

    def keep(place: Path) -> None:
        if any(name.startswith(file_set.STAGE) for name in names(place)):
            between.append(place)

    killed_at_every_call(folder, first.save, keep)
    staged = next(place for place in between if len(AvatarSet.load(place).images) == 3)
    start = shutil.copytree(staged, folder.with_name("twice"))
    for place in folder.parent.glob("killed_*"):
        shutil.rmtree(place)

    def check(place: Path) -> None:
        assert shown(place) in (["anger", "fear", "joy"], ["pride"])

    killed_at_every_call(start, second.save, check)


def test_a_killed_first_save_leaves_no_set_or_the_whole_one(tmp_path):
    (tmp_path / "empty").mkdir()

    def check(place: Path) -> None:
        if (place / "set.json").exists():
            assert shown(place) == ["anger", "fear"]
        make("joy").save(place)
        assert names(place) == ["01_joy.png", "reference.png", "set.json", "sheet.png"]

    killed_at_every_call(tmp_path / "empty", make("anger, fear").save, check)


@pytest.mark.parametrize("call", ["write_png", "replace", "link"])
def test_a_disk_that_fills_up_while_saving_is_named_and_loses_nothing(folder, monkeypatch, call):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {name: (folder / name).read_bytes() for name in names(folder)}
    if call == "write_png":
        monkeypatch.setattr(avatar_set, "write_png", full)
    elif call == "replace":
        monkeypatch.setattr(file_set.os, "replace", full)
    else:
        monkeypatch.setattr(file_set.os, "link", full)
        monkeypatch.setattr(file_set.shutil, "copyfile", full)
    with pytest.raises(OutputError) as error:
        make("anger, pride").save(folder)
    expected = f"{folder}: cannot be written: No space left on device; what was there is as it was"
    assert str(error.value) == expected
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


def test_a_file_system_without_hard_links_will_do(folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(file_set.os, "link", refuse)
    make("anger").save(folder)
    assert shown(folder) == ["anger"]
    assert names(folder) == ["01_anger.png", "reference.png", "set.json", "sheet.png"]


def test_two_additions_at_once_are_both_there(folder):
    first, second = (add(AvatarSet.load(folder), words, colour) for words, colour in (("anger", 1), ("pride", 2)))
    first.save(folder)
    saved = second.save(folder)
    assert shown(folder) == [e.name for e in saved.expressions] == ["joy", "fear", "anger", "pride"]
    np.testing.assert_array_equal(AvatarSet.load(folder).images[2:], [first.images[2], second.images[2]])


def test_a_set_that_is_saved_twice_is_not_added_twice(folder):
    grown = add(AvatarSet.load(folder), "anger")
    grown.save(folder)
    grown.save(folder)
    add(grown, "pride").save(folder)
    assert shown(folder) == ["joy", "fear", "anger", "pride"]


def test_the_same_expression_added_twice_at_once_is_refused(folder):
    first, second = (add(AvatarSet.load(folder), "anger") for _ in range(2))
    first.save(folder)
    with pytest.raises(DataError, match="another process added anger meanwhile"):
        second.save(folder)
    assert shown(folder) == ["joy", "fear", "anger"]


def test_an_addition_to_a_set_that_became_another_one_is_refused(folder):
    grown = add(AvatarSet.load(folder), "anger")
    make("joy, fear", 3).save(folder)
    with pytest.raises(DataError, match="has become another set"):
        grown.save(folder)
    np.testing.assert_array_equal(AvatarSet.load(folder).images, make("joy, fear", 3).images)


def test_processes_that_add_and_read_at_the_same_time_lose_nothing(folder):
    words = ["anger", "pride", "sadness", "surprise", "disgust", "shame"]
    failures = []

    def grow(word: str) -> None:
        try:
            add(AvatarSet.load(folder), word).save(folder)
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=grow, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert shown(folder)[:2] == ["joy", "fear"]
    assert sorted(shown(folder)[2:]) == sorted(words)


def test_who_saves_waits_for_another_that_saves_and_then_refuses(folder, monkeypatch):
    monkeypatch.setattr(avatar_set, "LOCK_WAIT_S", 0.1)
    with locked(folder), pytest.raises(InUseError, match=f"in use by process {os.getpid()} on"):
        make("anger").save(folder)
    assert shown(folder) == ["joy", "fear"]
