"""Writing cached features: what the file holds, when it is used again, and what is left after a failure: nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import active_children, current_process
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image
from support.faulty_source import FaultySource

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.data import feature_writer
from genaffect_jax.data.cached_features import CachedFeatures
from genaffect_jax.data.feature_writer import write_features
from genaffect_jax.data.sources.folder import FolderSource, open_folder
from genaffect_jax.errors import DataError

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="ends processes by their numbers and reads /dev/shm")


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    for i in range(3):
        (tmp_path / "r" / f"p{i}").mkdir(parents=True)
        for j, word in enumerate(("neutral", "joy", "anger")):
            Image.new("RGB", (8, 8), (50 * i, 50 * j, 100)).save(tmp_path / "r" / f"p{i}" / f"{word}.png")
    return open_folder(tmp_path / "r", 8, 0.0, RunDir(tmp_path / "w"))


class Encoder:
    """Means of 4 x 4 blocks, and a count of its calls."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.shapes.append(images.shape)
        return {"latents": self.factor * images.reshape(len(images), 2, 4, 2, 4, 3).mean((2, 4))}


class Later:
    """Results that read the images only when they are converted, like an array that is still being computed."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.shape = (len(images), 2, 2, 3)

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        return Encoder()(self.images)["latents"]


def test_every_image_has_its_own_latents_in_order(source: FolderSource, tmp_path: Path) -> None:
    encoder = Encoder()
    path = write_features(source, tmp_path / "cache" / "latents.npy", encoder, 4, "encoder 1")
    assert encoder.shapes == [(4, 8, 8, 3)] * 3  # nine images: the last batch is filled up
    latents = CachedFeatures(source, path)
    for index, image in enumerate(latents.examples):
        assert image is source.examples[index]
        loaded = latents.load(index)
        assert loaded.dtype == np.float16
        np.testing.assert_array_equal(loaded, np.tile(source.load(index)[0, 0], (2, 2, 1)))


def test_an_existing_file_is_reused_and_a_stale_one_never(source: FolderSource, tmp_path: Path) -> None:
    target = tmp_path / "latents.npy"
    first = write_features(source, target, Encoder(), 4, "encoder 1")
    again = Encoder()
    assert write_features(source, target, again, 4, "encoder 1", prepare=lambda: again.shapes.append(())) == first
    assert again.shapes == []
    other = Encoder(2.0)
    second = write_features(source, target, other, 4, "encoder 2")
    assert second != first
    assert CachedFeatures(source, second).load(0)[0, 0, 2] == 200
    # A changed image of the same name is another source.
    Image.new("RGB", (8, 8), (1, 2, 3)).save(source.root / source.files[0])
    changed = open_folder(source.root, 8, 0.0, RunDir(tmp_path / "w"))
    third = write_features(changed, target, Encoder(), 4, "encoder 1")
    assert third not in (first, second)
    assert CachedFeatures(changed, third).load(0)[0, 0].tolist() == [1, 2, 3]


def test_files_of_other_digests_go_when_a_new_one_is_complete_and_nothing_else_does(source, tmp_path, capfd) -> None:
    target = tmp_path / "cache" / "latents.npy"
    first = write_features(source, target, Encoder(), 4, "encoder 1")
    others = [target.parent / name for name in ("latents-mine.npy", "other-0123456789abcdef.npy", "latents.npy")]
    for other in others:
        other.touch()

    def interrupted(images: np.ndarray) -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(source, target, interrupted, 4, "encoder 2")
    assert set(target.parent.iterdir()) == {first, *others}
    capfd.readouterr()
    second = write_features(source, target, Encoder(2.0), 4, "encoder 2")
    assert set(target.parent.iterdir()) == {second, *others}
    assert f"are removed ({first.name}; " in capfd.readouterr().err
    write_features(source, target, Encoder(2.0), 4, "encoder 2")
    assert "removed" not in capfd.readouterr().err


def test_preparing_happens_once_before_the_first_call(source: FolderSource, tmp_path: Path) -> None:
    encoder = Encoder()
    write_features(source, tmp_path / "latents.npy", encoder, 4, "e", prepare=lambda: encoder.shapes.append(()))
    assert encoder.shapes == [(), *[(4, 8, 8, 3)] * 3]


def test_an_interrupted_run_leaves_no_file_behind(source: FolderSource, tmp_path: Path) -> None:
    calls: list[int] = []

    def interrupted(images: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return Encoder()(images)

    folder = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        write_features(source, folder / "latents.npy", interrupted, 4, "e")
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(source: FolderSource, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "latents.npy"
    left: list[Path] = []

    def killed(images: np.ndarray) -> dict[str, np.ndarray]:
        left.extend(target.parent.iterdir())  # the file as it stands while it is written
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(source, target, killed, 4, "e")
    assert len(left) == 1
    left[0].write_bytes(b"half")
    of_others = target.with_name(".latents-0123456789abcdef.npy.0123abcd.tmp")
    of_others.write_bytes(b"half")
    written = write_features(source, target, Encoder(), 4, "e")
    assert set(target.parent.iterdir()) == {written, of_others}


def test_an_encoder_that_misbehaves_is_refused(source: FolderSource, tmp_path: Path) -> None:
    def shapes(*each: tuple[int, ...], name: str = "latents", fill: float = 0.0):
        made = iter([np.full(shape, fill) for shape in (*each, *each[-1:] * 3)])
        return lambda p: {name: next(made)}

    for encode, message in (
        (shapes((4, 12)), r"latents of shape \(4, 12\)"),
        (shapes((2, 1, 1, 1)), r"latents of shape \(2, 1, 1, 1\), expected \(4, 1, 1, 1\)"),
        (shapes((4, 1, 1, 1), (4, 2, 1, 1)), r"latents of shape \(4, 2, 1, 1\), expected \(4, 1, 1, 1\)"),
        (shapes((4, 1, 1, 1), fill=1e6), "latents of images 0..: not finite in float16"),
        (shapes((4, 7), name="pose"), r"pose of shape \(4, 7\); it may return latents of 4 dimensions"),
    ):
        with pytest.raises(DataError, match=message):
            write_features(source, tmp_path / "a.npy", encode, 4, "e")
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("count", "batch_size"), [(301, 7), (301, 40), (5, 64)])
def test_the_file_is_that_of_one_image_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, count: int, batch_size: int
) -> None:
    # Short tasks and few slots, so that slots are used again many times while results are still to be read.
    monkeypatch.setattr(feature_writer, "_IMAGES_PER_TASK", 3)
    source = FaultySource(count)
    expected = np.zeros(count, [("latents", np.float16, (2, 2, 3))])
    for index in range(count):
        expected["latents"][index] = Encoder()(source.load(index)[None])["latents"][0]
    np.save(tmp_path / "expected.npy", expected)
    path = write_features(
        source, tmp_path / "found.npy", lambda images: {"latents": Later(images)}, batch_size, "e", workers
    )
    assert path.read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images to encode"):
        write_features(FaultySource(0), tmp_path / "a.npy", Encoder(), 4, "e")


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch) -> str:
    """Prefix of the names that a process gives to semaphores; memory has the process's number in its name."""
    prefix = f"writer-{uuid4().hex}"
    monkeypatch.setitem(current_process()._config, "semprefix", f"/{prefix}")
    return prefix


def named(prefix: str, pid: int) -> list[str]:
    """What a process has left in /dev/shm."""
    gc.collect()
    return [p.name for p in Path("/dev/shm").iterdir() if prefix in p.name or p.name.startswith(f"pymp-{pid}-")]


def failure(source: FaultySource, folder: Path, workers: int) -> BaseException:
    """The error of writing, without its frames, which would keep everything alive."""
    try:
        write_features(source, folder / "a.npy", Encoder(), 4, "e", workers)
    except Exception as e:
        return e.with_traceback(None)
    raise AssertionError("nothing failed")


@LINUX
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("raises", ZeroDivisionError, "no such number"),
        ("shape", DataError, r"image 30 \(p30, joy\): uint8 of shape \(1, 8, 3\), expected uint8 of shape \(8, 8, 3\)"),
        ("type", DataError, r"image 30 \(p30, joy\): float32 of shape"),
        ("killed", DataError, "a worker process was killed .*data.workers=0"),
    ],
)
def test_a_failing_worker_is_one_error_that_names_the_image_and_leaves_nothing(
    tmp_path: Path, shared_memory: str, fault: str, kind: type[Exception], message: str
) -> None:
    error = failure(FaultySource(60, fault, at=30), tmp_path / "cache", workers=2)
    with pytest.raises(kind, match=message):
        raise error
    if fault == "raises":
        assert error.__notes__ == ["while loading image 30 (p30, joy)"]
    error.__cause__ = error.__context__ = None
    del error
    assert list((tmp_path / "cache").iterdir()) == []
    assert not active_children()
    assert named(shared_memory, os.getpid()) == []


def test_a_file_that_breaks_is_named_also_from_a_worker(source: FolderSource, tmp_path: Path) -> None:
    (source.root / "p1" / "joy.png").unlink()
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"p1/joy\.png.*was readable when the folder was checked"):
            write_features(source, tmp_path / "cache" / "a.npy", Encoder(), 4, "e", workers)
    assert list((tmp_path / "cache").iterdir()) == []


@LINUX
def test_success_leaves_nothing_but_the_file(tmp_path: Path, shared_memory: str) -> None:
    path = write_features(FaultySource(60), tmp_path / "cache" / "a.npy", Encoder(), 4, "e", 2)
    assert list((tmp_path / "cache").iterdir()) == [path]
    assert not active_children()
    assert named(shared_memory, os.getpid()) == []


@LINUX
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # the header fits, the rows do not
    try:
        with pytest.raises(OSError, match=r"cache/a-[0-9a-f]{16}\.npy"):
            write_features(FaultySource(60), tmp_path / "cache" / "a.npy", Encoder(), 4, "e")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []


PROGRAM = """
import signal
import sys
from multiprocessing import active_children, current_process
from pathlib import Path
from genaffect_jax.data.feature_writer import write_features
from support.faulty_source import FaultySource

if __name__ == "__main__":
    # As in a terminal: a test run in the background ignores SIGINT, and programs that it starts inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    current_process()._config["semprefix"] = "/" + sys.argv[2]
    calls = []

    def encode(images):
        calls.append(1)
        if len(calls) == 3:
            print("running", *(child.pid for child in active_children()), flush=True)
        return {"embedding": images[:, 0, 0]}

    def prepare():
        print("starting", *(child.pid for child in active_children()), flush=True)

    try:
        write_features(FaultySource(100_000, seconds=0.01), Path(sys.argv[1]) / "a.npy", encode, 8, "e", 2, prepare)
    except KeyboardInterrupt:
        print("stopped", flush=True)
"""


@pytest.fixture
def program(tmp_path: Path, shared_memory: str) -> Iterator[subprocess.Popen[str]]:
    """A program that writes with two workers, in a process group of its own; it never gets done."""
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "cache"), shared_memory],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whatever a failed test has left running
    process.communicate()


def workers_at(word: str, process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the two workers, when the program says this word."""
    assert process.stdout
    for line in process.stdout:
        first, *ids = line.split()
        if first == word:
            assert len(ids) == 2
            return [int(pid) for pid in ids]
    raise AssertionError(f"the program ended without {word!r}")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@LINUX
@pytest.mark.parametrize("word", ["starting", "running"])
def test_ctrl_c_is_quiet_and_leaves_nothing(
    program: subprocess.Popen[str], tmp_path: Path, shared_memory: str, word: str
) -> None:
    workers = workers_at(word, program)
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=60)
    assert out.split()[-1] == "stopped"
    assert "Traceback" not in err
    assert all(map(gone, workers))
    assert list((tmp_path / "cache").iterdir()) == []
    assert named(shared_memory, program.pid) == []


@LINUX
def test_workers_and_shared_memory_end_with_the_main_process(
    program: subprocess.Popen[str], shared_memory: str
) -> None:
    workers = workers_at("running", program)
    assert named(shared_memory, program.pid)
    program.kill()
    wait_until(lambda: all(map(gone, workers)))
    # multiprocessing's own process removes the semaphores.
    wait_until(lambda: named(shared_memory, program.pid) == [])
