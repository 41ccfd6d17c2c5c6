"""Options that name files: `~` is the home folder, URLs are refused, and other colons are part of a name."""

import dataclasses
from pathlib import Path

import pytest

from genaffect_jax.config.file_name import FileName
from genaffect_jax.config.local_paths import local_paths
from genaffect_jax.errors import ConfigError


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/set", "hdfs://name/set", "file:///data/set", "https://host/set", "HTTP://host/set", "a+b-c.1://x"],
)
def test_urls_of_all_kinds_are_shown_as_they_were_written(url):
    for value in (Path(url), url):
        with pytest.raises(ConfigError) as error:
            local_paths(Some(path=Path(value)) if isinstance(value, Path) else Some(names=("x", value)))
        assert error.value.found == url


@dataclasses.dataclass(frozen=True)
class Some:
    path: Path | None = None
    names: tuple[FileName, ...] = ()
    text: str = ""
    paths: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    run: Some
    inner: Some


def test_a_tilde_is_the_home_folder_in_all_fields_that_name_files(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    some = Some(Path("~/set"), ("~/a.png", "seed:1", "folder:~/faces"), "~/text https://host", (Path("~"), Path("b/~")))
    expected = Some(
        Path("/home/me/set"),
        ("/home/me/a.png", "seed:1", "folder:/home/me/faces"),
        "~/text https://host",
        (Path("/home/me"), Path("b/~")),
    )
    assert local_paths(Outer(some, some)) == Outer(expected, expected)


def test_fields_of_a_preset_are_named_without_and_others_with_their_configuration():
    url = Some(paths=(Path("a"), Path("gs://b")))
    with pytest.raises(ConfigError, match=r"^paths=gs://b: is a URL"):
        local_paths(Outer(url, Some()))
    with pytest.raises(ConfigError, match=r"^inner.paths=gs://b: is a URL"):
        local_paths(Outer(Some(), url))


def test_the_home_folder_of_nobody_is_refused_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no home folder ~nobody_here"):
        local_paths(Some(Path("~nobody_here/set")))
    (tmp_path / "~nobody_here").mkdir()
    assert local_paths(Some(Path("~nobody_here/set"))).path == Path("~nobody_here/set")


@pytest.mark.parametrize(
    "path", ["C:/set", "a:b", "seed:7", "package:identity_avatar", "/a/b://c", "x.safetensors:0.8"]
)
def test_other_colons_are_part_of_a_name(path):
    assert local_paths(Some(Path(path), (path,))) == Some(Path(path), (path,))
