"""Avatars stored by worker processes: the same as without, and nothing is left when a worker is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from genaffect_jax.data.sources.stored import AvatarSettings, store_avatars
from genaffect_jax.errors import DataError


def test_worker_processes_store_the_same_files(tmp_path: Path) -> None:
    settings = AvatarSettings(image_size=16, identities=17, expressions_per_identity=2, pose_scale=1.0)
    here, there = (store_avatars(settings, tmp_path / f"workers{n}", n) for n in (0, 2))
    assert {file.name: file.read_bytes() for file in here.iterdir()} == {
        file.name: file.read_bytes() for file in there.iterdir()
    }


@pytest.mark.skipif(sys.platform != "linux", reason="kills a process by its number")
def test_a_killed_worker_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    def kill_one() -> None:
        deadline = time.monotonic() + 30
        while not (children := active_children()) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(children[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    settings = AvatarSettings(image_size=64, identities=400, expressions_per_identity=8, pose_scale=1.0)
    with pytest.raises(DataError, match="rendering avatars: a worker process was killed"):
        store_avatars(settings, tmp_path / "stored" / "avatars", 2)
    killer.join()
    assert list((tmp_path / "stored").iterdir()) == []
    assert not active_children()
