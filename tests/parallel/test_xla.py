"""The compilation cache: where it lies, and that its absence is one warning."""

import os
import subprocess
import sys

import pytest

# Compiles and prints what a second start finds.
PROGRAM = """
import jax
from genaffect_jax.parallel.xla import use_compilation_cache
folder = use_compilation_cache()
print(folder)
for size in (3, 5):
    jax.jit(lambda x: x * 2 + 1)(jax.numpy.ones(size)).block_until_ready()
"""


HOMELESS = """
from pathlib import Path

def home():
    raise RuntimeError("Could not determine home directory.")

Path.home = home
"""


def run(tmp_path, program=PROGRAM, **environment) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_"))}
    environment = {
        **inherited,
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "HOME": str(tmp_path / "home"),
        **environment,
    }
    return subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=True)


@pytest.mark.parametrize(
    ("name", "below"),
    [("HOME", ".cache/genaffect_jax"), ("XDG_CACHE_HOME", "genaffect_jax"), ("JAX_COMPILATION_CACHE_DIR", "")],
)
def test_compiled_programs_are_kept_below_the_given_folder(tmp_path, name, below):
    ended = run(tmp_path, **{name: str(tmp_path / "there")})
    assert ended.stdout.strip() == str(tmp_path / "there" / below)
    assert ended.stderr == ""
    assert list((tmp_path / "there" / below).iterdir())


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
@pytest.mark.parametrize("obstacle", ["a file", "a circle of links"])
def test_without_a_place_to_write_nothing_is_kept_and_one_line_says_so(tmp_path, name, obstacle):
    place = tmp_path / "place"
    if obstacle == "a file":
        place.write_text("")
    else:
        place.symlink_to("place")
    ended = run(tmp_path, **{name: str(place)})
    assert ended.stdout.strip() == "None"
    (line,) = ended.stderr.splitlines()
    assert line.startswith("warning: compiled programs are not kept for the next start (")
    assert str(place) in line
    assert "JAX_COMPILATION_CACHE_DIR" in line


def test_a_user_without_home_folder_gets_the_same_line(tmp_path):
    ended = run(tmp_path, HOMELESS + PROGRAM)
    assert ended.stdout.strip() == "None"
    assert "not kept for the next start (Could not determine home directory.)" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_cache_that_is_switched_off_needs_no_folder(tmp_path):
    ended = run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false", HOME="/proc/none")
    assert (ended.stdout.strip(), ended.stderr) == ("None", "")
