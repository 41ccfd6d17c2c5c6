"""The input pipeline: what a batch holds, its order, restoring it, sharing it, and how its processes end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.data import loader as loader_module
from genaffect_jax.data.example_table import example_table, gather
from genaffect_jax.data.loader import Batch, Loader, automatic_workers, make_loader
from genaffect_jax.data.sources.base import Source
from genaffect_jax.data.sources.folder import FolderSource, open_folder
from genaffect_jax.errors import DataError
from genaffect_jax.expressions.grammar import parse_expression

WORDS = ("neutral", "joy", "anger", "sadness", "surprise", "fear")
PEOPLE = tuple(f"p{i}" for i in range(5))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    """Five people with six expressions; the colour says which person (red) and which expression (green)."""
    root = tmp_path_factory.mktemp("images")
    for i, person in enumerate(PEOPLE):
        (root / person).mkdir()
        for j, word in enumerate(WORDS):
            Image.new("RGB", (16, 16), (40 * i, 40 * j, 255)).save(root / person / f"{word}.png")
    return open_folder(root, 16, 0.0, RunDir(tmp_path_factory.mktemp("work")))


def loader(source: Source, workers: int = 0, **changes: int) -> Loader:
    settings = {"batch_size": 4, "expressions_per_set": 3, "seed": 0} | changes
    return make_loader(source, PEOPLE, workers=workers, **settings)


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_batch_shows_one_person_per_set_with_different_expressions_and_the_right_vectors(
    source: FolderSource,
) -> None:
    vectors = np.stack([parse_expression(word).vector for word in WORDS])
    for batch in islice(loader(source), 20):
        assert batch["reference"].shape == (4, 1, 16, 16, 3)
        assert batch["target"].shape == (4, 3, 16, 16, 3)
        assert batch["reference"].dtype == batch["target"].dtype == np.uint8
        assert batch["expression"].dtype == np.float32
        assert batch["identity"].dtype == np.int32
        colours = np.concatenate([batch["reference"], batch["target"]], 1)[:, :, 8, 8]
        np.testing.assert_array_equal(colours[..., 0], np.tile(40 * batch["identity"][:, None], 4))
        words = colours[..., 1] // 40
        assert all(len(set(row)) == 4 for row in words)
        np.testing.assert_array_equal(batch["expression"], vectors[words[:, 1:]])


def test_with_prompts_a_batch_holds_the_row_of_every_targets_prompt(source: FolderSource) -> None:
    rows = np.array([100 + WORDS.index(p.label) for p in source.examples])
    stream = make_loader(source, PEOPLE, batch_size=4, expressions_per_set=3, seed=0, workers=0, prompts=rows)
    plain = loader(source)
    for batch, expected in islice(zip(stream, plain, strict=True), 10):
        words = batch["target"][:, :, 8, 8, 1] // 40
        np.testing.assert_array_equal(batch.pop("prompt"), 100 + words)
        assert_same([batch], [expected])
    with pytest.raises(ValueError, match="prompts: 2 rows for 30 images"):
        make_loader(source, PEOPLE, batch_size=4, expressions_per_set=3, seed=0, workers=0, prompts=rows[:2])


def test_the_order_does_not_depend_on_the_number_of_workers(source: FolderSource) -> None:
    expected = list(islice(loader(source), 7))
    for workers in (1, 2):
        stream = loader(source, workers)
        assert_same(list(islice(stream, 7)), expected)
        stream.close()


def test_batches_by_index_are_those_that_gathering_turns_into_the_batches_and_load_nothing(
    source: FolderSource,
) -> None:
    recorded, rows = Recorded(source), np.arange(30)
    settings = {"batch_size": 4, "expressions_per_set": 3, "seed": 0, "workers": 2, "prompts": rows}
    stream = make_loader(recorded, PEOPLE, by_index=True, **settings)
    found = list(islice(stream, 7))
    assert recorded.loaded == []
    assert not active_children()
    assert all(array.dtype == np.int32 for batch in found for array in batch.values())
    table = example_table(source, rows)
    plain = make_loader(source, PEOPLE, **settings | {"workers": 0})
    assert_same([gather(table, batch) for batch in found], list(islice(plain, 7)))
    state = json.loads(json.dumps(stream.get_state()))
    assert state == plain.get_state()  # each continues where the other stopped
    second = make_loader(source, PEOPLE, by_index=True, shard_index=1, num_shards=2, **settings)
    second.set_state(state)
    expected = next(plain)
    assert_same([gather(table, next(second))], [{name: array[2:] for name, array in expected.items()}])


def test_without_a_number_pixels_get_a_worker_for_each_processor_but_one(
    source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    for processors, workers in ((1, 1), (2, 1), (8, 7), (17, 16), (192, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=processors: set(range(n)), raising=False)
        assert automatic_workers(source) == workers


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_saved_in_the_middle_as_json_yields_the_same_batches(source: FolderSource, workers: int) -> None:
    stream = loader(source, workers)
    list(islice(stream, 3))  # in the middle of an epoch of 5 people
    state = json.loads(json.dumps(stream.get_state()))
    expected = list(islice(stream, 4))
    stream.set_state(state)  # the same loader goes back
    assert_same(list(islice(stream, 2)), expected[:2])
    stream.close()
    fresh = loader(source, 1 - workers)  # and so does a new one, with another number of workers
    fresh.set_state(state)
    assert_same(list(islice(fresh, 4)), expected)
    assert fresh.get_state()["next_batch"] == 7
    fresh.close()


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 8}, {"expressions_per_set": 2}])
def test_the_state_of_another_stream_is_refused_and_the_difference_named(
    source: FolderSource, change: dict[str, int]
) -> None:
    with pytest.raises(DataError, match=next(iter(change))):
        loader(source, **change).set_state(loader(source).get_state())


def test_the_state_of_other_images_or_people_is_refused(source: FolderSource) -> None:
    state = loader(source).get_state()
    fewer = FolderSource(source.root, source.files[1:], source.examples[1:], 16, "digest")
    with pytest.raises(DataError, match="images"):
        loader(fewer).set_state(state)
    people = make_loader(source, PEOPLE[1:], batch_size=4, expressions_per_set=3, seed=0, workers=0)
    with pytest.raises(DataError, match="identities"):
        people.set_state(state)
    one = {"batch_size": 4, "expressions_per_set": 1, "seed": 0, "workers": 0}
    with pytest.raises(DataError, match="pairs was None and is self"):
        make_loader(source, PEOPLE, **one, pairs="self").set_state(make_loader(source, PEOPLE, **one).get_state())
    with pytest.raises(DataError, match="next_batch"):
        loader(source).set_state({"batch": 3})


class Recorded:
    """A source that remembers what was loaded."""

    def __init__(self, source: FolderSource) -> None:
        self.source = source
        self.examples = source.examples
        self.width = source.width
        self.loaded: list[int] = []

    def load(self, index: int) -> np.ndarray:
        self.loaded.append(index)
        return self.source.load(index)

    def describe(self) -> str:
        return self.source.describe()

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def test_the_shards_of_two_processes_are_disjoint_and_together_the_whole(source: FolderSource) -> None:
    whole = list(islice(loader(source), 5))
    recorded = [Recorded(source), Recorded(source)]
    num_shards = [list(islice(loader(r, shard_index=i, num_shards=2), 5)) for i, r in enumerate(recorded)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*num_shards, strict=True)]
    assert_same(joined, whole)
    # Each process loads the four images of its own two sets in every batch, and no others.
    assert [len(r.loaded) for r in recorded] == [5 * 2 * 4] * 2


def test_sharing_continues_with_another_number_of_processes(source: FolderSource) -> None:
    stream = loader(source)
    list(islice(stream, 3))
    state = stream.get_state()
    expected = next(stream)
    second = loader(source, shard_index=1, num_shards=2)
    second.set_state(state)
    np.testing.assert_array_equal(next(second)["target"], expected["target"][2:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5, "num_shards": 2}, "batch_size=5: must be a positive multiple of num_shards=2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"shard_index": 2, "num_shards": 2}, "shard_index=2"),
        ({"workers": -1}, "workers=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_numbers_are_refused(source: FolderSource, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(source, **change)


def test_a_file_that_breaks_during_training_is_named_also_from_a_worker(tmp_path: Path) -> None:
    for person in PEOPLE:
        for word in WORDS[:2]:
            (tmp_path / "r" / person).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16)).save(tmp_path / "r" / person / f"{word}.png")
    source = open_folder(tmp_path / "r", 16, 0.0, RunDir(tmp_path / "w"))
    expected = list(islice(loader(source, expressions_per_set=1), 5))
    (tmp_path / "r" / "p3" / "joy.png").unlink()
    stream, found = loader(source, 1, expressions_per_set=1), []
    with pytest.raises(DataError, match=r"p3/joy\.png.*was readable when the folder was checked"):
        found.extend(stream)
    state = stream.get_state()
    stream.close()
    # The position is that of the batch that failed: with the file back, nothing is skipped or repeated.
    Image.new("RGB", (16, 16)).save(tmp_path / "r" / "p3" / "joy.png")
    again = loader(source, expressions_per_set=1)
    again.set_state(state)
    number = state["next_batch"]
    assert number < 5
    assert_same(list(islice(again, 5 - number)), expected[number:])


@pytest.mark.skipif(sys.platform != "linux", reason="kills a process by its number")
def test_killed_workers_start_again_with_the_same_batches(source: FolderSource, capsys: pytest.CaptureFixture) -> None:
    expected = list(islice(loader(source), 24))
    stream = loader(source, 2)
    found = list(islice(stream, 4))
    os.kill(active_children()[0].pid, signal.SIGKILL)
    found += islice(stream, 20)  # some are ready already: workers read ahead
    stream.close()
    assert_same(found, expected)
    assert "a worker process of the data pipeline was killed; all restart at batch" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="kills a process by its number")
def test_workers_that_are_killed_again_and_again_end_in_an_error(
    source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_MOST_STARTS", 1)
    stream = loader(source, 1)
    next(stream)
    os.kill(active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"killed, 1 times in a row .*exit code -9.*lower data\.workers"):
        list(islice(stream, 20))
    stream.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_full_shared_memory_is_named_with_what_to_do(source: FolderSource, monkeypatch, number: int) -> None:
    stream = loader(source, 1)

    def full() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(stream, "_fetch", full)
    with pytest.raises(
        DataError, match=r"batch 0: /dev/shm \(.* MB, .* MB free\) is full: .*--shm-size.*data\.workers"
    ):
        next(stream)

    def broken() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(stream, "_fetch", broken)
    with pytest.raises(OSError, match="Input/output error"):
        next(stream)
    stream.close()


SCRIPT = """
import signal
import sys
from multiprocessing import active_children
from pathlib import Path
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.folder import open_folder

if __name__ == "__main__":
    # As in a terminal: a test run in the background ignores SIGINT, and programs that it starts inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    source = open_folder(Path(sys.argv[1]), 16, 0.0, RunDir(Path(sys.argv[2])))
    people = sorted({p.identity for p in source.examples})
    stream = make_loader(source, people, batch_size=4, expressions_per_set=3, seed=0, workers=2)
    try:
        print("starting", flush=True)
        for number, batch in enumerate(stream):
            if number == 4:
                print("running", *(child.pid for child in active_children()), flush=True)
    except KeyboardInterrupt:
        stream.close()
        print("stopped", flush=True)
"""


@pytest.fixture
def program(source: FolderSource, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program about to load with two workers, in a process group of its own."""
    (tmp_path / "program.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(source.root), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "starting\n"
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whatever a failed test has left running
    process.communicate()


def worker_ids(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the two workers, once they run."""
    assert process.stdout
    ids = [int(pid) for pid in process.stdout.readline().split()[1:]]
    assert len(ids) == 2
    return ids


def starting_workers(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the first of the two workers to be there: it imports its modules now."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        threads = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [pid for thread in threads for pid in thread.read_text().split()]
        found = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("no worker starts")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="sends signals to a process group and reads /proc")
@pytest.mark.parametrize("starting", [False, True])
def test_ctrl_c_ends_the_workers_without_their_tracebacks(program: subprocess.Popen[str], starting: bool) -> None:
    workers = starting_workers(program) if starting else worker_ids(program)
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=60)
    assert out.strip() == "stopped"
    assert "Traceback" not in err
    assert all(map(gone, workers))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_the_main_process_is_killed(program: subprocess.Popen[str]) -> None:
    workers = worker_ids(program)
    program.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all(map(gone, workers)):
        time.sleep(0.1)
    assert all(map(gone, workers))
