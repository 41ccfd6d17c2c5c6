"""New files and folders have the permissions that the umask gives them, whatever the library that writes them does."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from genaffect_jax.io.atomic import new_folder

UMASKS = [0o022, 0o027, 0o077]

WRITERS = """
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from genaffect_jax.io.array_file import write_arrays
from genaffect_jax.io.atomic import copy_atomically, new_file, new_folder, write_atomically

tensors = {"x": np.ones(3, np.float32)}
out = Path(sys.argv[1])
(out / "ordinary").write_text("")
(out / "ordinary_folder").mkdir()
write_atomically(out / "written", "", durable=True)
copy_atomically(out / "ordinary", out / "copied")
write_arrays(out / "arrays", tensors, {})
with new_file(out / "tensors") as temporary:
    save_file(tensors, temporary)
with new_folder(out / "folder") as new:
    (new / "text").write_text("")
    (new / "below").mkdir()
    save_file(tensors, new / "tensors")
    save_file(tensors, new / "below" / "tensors")
"""

TRANSFORMER = """
import os
import sys
from pathlib import Path

import jax.numpy as jnp

from genaffect_jax.config import MMDiTConfig
from genaffect_jax.interop.diffusers.weights import TRANSFORMER, write_transformer

config = MMDiTConfig(
    sample_size=4, num_layers=4, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=6,
    pooled_projection_dim=5, in_channels=4, pos_embed_max_size=3, dual_attention_layers=(0, 1), register_tokens=0,
)
zeros = {name: jnp.zeros(s.shape, s.dtype) for name, s in TRANSFORMER.network(config).shapes.items()}
for umask in sys.argv[2:]:
    os.umask(int(umask))
    folder = Path(sys.argv[1]) / umask
    write_transformer(config, zeros, folder, max_shard_bytes=20_000)
"""


EXECUTABLES = """
import sys
from pathlib import Path

from genaffect_jax.io.atomic import new_file, new_folder

with new_file(Path(sys.argv[1]) / "file") as temporary:
    temporary.write_text("")
    temporary.chmod(0o755)
with new_folder(Path(sys.argv[1]) / "folder") as new:
    (new / "own").write_text("")
    (new / "own").chmod(0o700)
"""


def run(script: str, *arguments: object, umask: int = -1) -> None:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, umask=umask, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", UMASKS, ids=oct)
def test_permissions_are_those_of_an_ordinary_new_file_and_folder(tmp_path: Path, umask: int) -> None:
    run(WRITERS, tmp_path, umask=umask)
    assert mode(tmp_path / "ordinary") == 0o666 & ~umask
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert {path.name: mode(path) for path in files} == {path.name: 0o666 & ~umask for path in files}
    for name in ("folder", "folder/below"):
        assert mode(tmp_path / name) == mode(tmp_path / "ordinary_folder") == 0o777 & ~umask


def test_all_files_of_a_written_transformer_have_the_permissions_of_its_config(tmp_path: Path) -> None:
    run(TRANSFORMER, tmp_path, *UMASKS)
    for umask in UMASKS:
        folder = tmp_path / str(umask)
        assert mode(folder) == 0o777 & ~umask
        modes = {path.name: mode(path) for path in folder.iterdir()}
        assert sum(name.endswith(".safetensors") for name in modes) > 1
        assert "config.json" in modes
        assert set(modes.values()) == {0o666 & ~umask}


@pytest.mark.parametrize(
    ("umask", "file", "own"), [(0o022, 0o755, 0o744), (0o027, 0o750, 0o740), (0o077, 0o700, 0o700)]
)
def test_execute_bits_are_kept_as_far_as_the_umask_allows(tmp_path: Path, umask: int, file: int, own: int) -> None:
    run(EXECUTABLES, tmp_path, umask=umask)
    assert mode(tmp_path / "file") == file
    assert mode(tmp_path / "folder" / "own") == own


def test_what_a_link_points_to_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("")
    (tmp_path / "outside").chmod(0o400)
    with new_folder(tmp_path / "folder") as new:
        os.symlink(tmp_path / "outside", new / "link")
    assert mode(tmp_path / "outside") == 0o400
    assert (tmp_path / "folder" / "link").is_symlink()
