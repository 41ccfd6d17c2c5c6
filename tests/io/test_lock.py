"""One process at a time holds a folder's lock, and a lock whose process is gone holds nobody up."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from genaffect_jax.errors import InUseError
from genaffect_jax.io import lock
from genaffect_jax.io.lock import LOCK_FILE, locked

HOLDER = """
import sys, time
from pathlib import Path
from genaffect_jax.io import lock
if sys.argv[2] == "plain":
    lock.fcntl = None
with lock.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

COUNTER = """
import sys, time
from pathlib import Path
from genaffect_jax.io import lock
if sys.argv[2] == "plain":
    lock.fcntl = None
folder = Path(sys.argv[1])
for _ in range(20):
    with lock.locked(folder, wait_s=60):
        count = int((folder / "count").read_text())
        time.sleep(0.002)
        (folder / "count").write_text(str(count + 1))
"""


@pytest.fixture(params=["record", "plain"])
def kind(request, monkeypatch):
    """With record locks, and as on a file system without them."""
    if request.param == "plain":
        monkeypatch.setattr(lock, "fcntl", None)
    return request.param


def hold(folder, kind):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_with_host_and_number_of_the_first(tmp_path, kind):
    process = hold(tmp_path, kind)
    try:
        with pytest.raises(InUseError, match=f"in use by process {process.pid} on {socket.gethostname()} "):
            locked(tmp_path).__enter__()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, kind, end):
    process = hold(tmp_path, kind)
    process.send_signal(end)
    process.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_thread_of_the_same_process_is_excluded_too_and_waits(tmp_path, kind):
    seen = []

    def second():
        with locked(tmp_path, wait_s=30):
            seen.append("second")

    with locked(tmp_path):
        with pytest.raises(InUseError, match=f"process {os.getpid()} on"):
            locked(tmp_path).__enter__()
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        seen.append("first")
    thread.join()
    assert seen == ["first", "second"]


def test_writers_take_turns_and_none_is_lost(tmp_path, kind):
    (tmp_path / "count").write_text("0")
    writers = [subprocess.Popen([sys.executable, "-c", COUNTER, str(tmp_path), kind]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "60"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_without_record_locks_a_lock_of_another_host_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    (tmp_path / LOCK_FILE).write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": 0}))
    with pytest.raises(InUseError, match="process 1 on elsewhere"):
        locked(tmp_path).__enter__()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "elsewhere"


def test_a_file_system_without_record_locks_is_noticed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with locked(tmp_path), pytest.raises(InUseError):
        locked(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_folder_is_the_same_folder(tmp_path, kind):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with locked(tmp_path / "run"), pytest.raises(InUseError):
        locked(tmp_path / "link").__enter__()
