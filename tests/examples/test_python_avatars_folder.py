"""The example that writes a folder of python-avatars images: it opens as a source, and people keep their looks."""

from __future__ import annotations

import importlib.util
import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.data.groups import split_identities
from genaffect_jax.data.sources.folder import FolderSource, open_folder
from genaffect_jax.expressions.grammar import parse_expression

pytest.importorskip("python_avatars", reason="needs the `dev` extra")
pytest.importorskip("resvg_py", reason="needs the `dev` extra")
PROGRAM = Path(__file__).parents[2] / "examples" / "python_avatars_folder.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location(PROGRAM.stem, PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("example") / "avatars"
    example.main(out, identities=3, size=64)
    return out


@pytest.fixture
def source(folder: Path, tmp_path: Path) -> FolderSource:
    return open_folder(folder, 64, 0.0, RunDir(tmp_path))


def test_the_folder_opens_with_nothing_rejected(source: FolderSource, tmp_path: Path) -> None:
    assert len(source.examples) == 36
    assert len({p.identity for p in source.examples}) == 3
    assert len({p.expression_key for p in source.examples}) == 12
    assert '"rejected"' not in (tmp_path / "rejected.jsonl").read_text()
    assert all(split_identities(source, 0.2, 0))


def test_words_of_the_table_are_the_vocabularys_own_vectors(source: FolderSource) -> None:
    shown = {p.expression_key for p in source.examples}
    for word in ("joy", "sadness", "anger", "surprise", "fear", "neutral"):
        assert parse_expression(word).vector.tobytes() in shown


def test_expressions_change_the_face_and_nothing_else(source: FolderSource) -> None:
    for start in range(0, 36, 12):
        images = np.stack([source.load(i) for i in range(start, start + 12)]).astype(int)
        changes = np.abs(images - images[0]).max((0, 3)) > 8
        assert not changes[:10].any()  # hair
        assert not changes[:, :10].any()  # background
        assert not changes[54:].any()  # neck and clothes
        for i in range(12):
            for j in range(i):
                assert np.abs(images[i] - images[j]).max() > 30, (i, j)


def test_people_differ_and_follow_the_seed(example: ModuleType) -> None:
    people = [str(example.sample_person(0, i)) for i in range(40)]
    assert len(set(people)) == 40
    assert people == [str(example.sample_person(0, i)) for i in range(40)]
    assert str(example.sample_person(1, 0)) != people[0]


def test_the_shut_eye_of_the_wink_is_the_persons_left(example: ModuleType) -> None:
    person = example.sample_person(0, 0)
    wink, both = (
        np.asarray(Image.open(BytesIO(example.render(person, "DEFAULT", eyes, "SERIOUS", 64))).convert("L"), int)
        for eyes in ("WINK", "DEFAULT")
    )
    different = np.abs(wink - both) > 30
    assert different[:, 32:].any()  # the right half of the image
    assert not different[:, :32].any()


def test_an_existing_folder_is_kept_unless_this_program_wrote_it(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(SystemExit, match="mine"):
            example.main(tmp_path / "mine", identities=2, size=16, overwrite=overwrite)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"
    out = tmp_path / "out"
    example.main(out, identities=2, size=16)
    (out / "old.txt").write_text("from before")
    with pytest.raises(SystemExit, match="exists already"):
        example.main(out, identities=2, size=16)
    example.main(out, identities=2, size=16, seed=1, overwrite=True)
    assert not (out / "old.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]  # no partial folder stays


def test_a_failed_run_leaves_nothing(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def failing(*arguments: object) -> bytes:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return b""

    monkeypatch.setattr(example, "render", failing)
    with pytest.raises(KeyboardInterrupt):
        example.main(tmp_path / "out", identities=2, size=16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "value"), [("identities", 1), ("size", 8), ("seed", -1)])
def test_values_out_of_range_are_refused(example: ModuleType, tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(SystemExit, match=f"{option}={value}"):
        example.main(tmp_path / "out", **{option: value})
