"""What an export may be written over is known before anything is computed."""

import errno
import os

import pytest

from genaffect_jax.errors import ConfigError
from genaffect_jax.export.checksums import require_replaceable


def test_a_file_a_circle_of_links_and_a_full_disk_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        require_replaceable(tmp_path / "file", True)
    with pytest.raises(ConfigError, match="leads in a circle"):
        require_replaceable(tmp_path / "circle", True)
    require_replaceable(tmp_path / "new" / "folder", False)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match="cannot be written to: No space left on device"):
        require_replaceable(tmp_path / "new" / "folder", False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file"]
