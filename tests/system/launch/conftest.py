"""A PATH on which no real cloud tool can be reached."""

import shutil

import pytest
from support.launch_scripts import executable


@pytest.fixture
def path(tmp_path):
    """A folder for PATH with plain tools only: no real cloud tool can be reached from a test."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "dirname", "id", "mkdir", "sed"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def recorded(path, tmp_path):
    """Puts fakes on PATH that record their arguments; returns a function that reads what they recorded."""
    record = tmp_path / "record"
    for name in ("gcloud", "xpk", "sbatch", "docker", "git"):
        executable(path / name, f"#!/bin/bash\n{{ printf '%s\\0' {name} \"$@\"; printf '\\1'; }} >>'{record}'\n")
    return lambda: [call.split("\0")[:-1] for call in record.read_text().split("\1")[:-1]] if record.exists() else []
