"""Image folders: both layouts, what is rejected and reported, and when a run stops."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DataConfig
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.folder import FolderSource, open_folder
from genaffect_jax.data.sources.layouts import expression_in_name
from genaffect_jax.data.sources.open import open_source
from genaffect_jax.errors import DataError
from genaffect_jax.expressions.grammar import parse_expression

WORDS = ("joy", "anger", "sadness", "surprise", "neutral")


def image(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (value, value, value)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four people with five expressions each."""
    for i in range(4):
        for j, word in enumerate(WORDS):
            image(tmp_path / "images" / f"p{i}" / f"{word}.png", 50 * i + 10 * j)
    return tmp_path / "images"


def opened(root: Path, max_rejected: float = 0.2) -> FolderSource:
    return open_folder(root, 16, max_rejected, RunDir(root.parent / "work"))


def rows(root: Path) -> dict[str, dict[str, str]]:
    lines = (root.parent / "work" / "rejected.jsonl").read_text("utf-8").splitlines()
    return {row["file"]: row for row in map(json.loads, lines)}


def metadata(root: Path, lines: list[dict[str, object]]) -> None:
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def all_lines(root: Path) -> list[dict[str, object]]:
    return [
        {"file": f"p{i}/{word}.png", "identity": f"person {i}", "expression": word} for i in range(4) for word in WORDS
    ]


def test_identity_folders_give_people_expressions_and_pixels(root: Path) -> None:
    image(root / "p0" / "joy_2.png")
    image(root / "p0" / "AU6=0.5,AU12L=0.9_1.png", 7)
    source = opened(root)
    assert len(source.examples) == 22
    by_file = dict(zip(source.files, source.examples, strict=True))
    assert by_file["p3/anger.png"].identity == "p3"
    np.testing.assert_array_equal(by_file["p0/joy_2.png"].expression, parse_expression("joy").vector)
    units = by_file["p0/AU6=0.5,AU12L=0.9_1.png"]
    np.testing.assert_array_equal(units.expression, parse_expression("AU6=0.5,AU12L=0.9").vector)
    assert (source.load(source.files.index("p0/AU6=0.5,AU12L=0.9_1.png")) == 7).all()
    assert source.load(0).shape == (16, 16, 3)
    assert source.width == 40
    assert rows(root) == {}


@pytest.mark.parametrize(
    ("name", "expression"),
    [("joy.png", "joy"), ("joy_12.jpeg", "joy"), ("AU6=0.5,AU12=0.9.png", "AU6=0.5,AU12=0.9"), ("joy_b.png", "joy_b")],
)
def test_only_a_trailing_number_is_taken_off_a_file_name(name: str, expression: str) -> None:
    assert expression_in_name(name) == expression


def test_ten_percent_bad_files_are_skipped_and_each_is_reported_with_its_reason(root: Path) -> None:
    good = opened(root)
    image(root / "p0" / "fear_1.png")
    data = (root / "p0" / "fear_1.png").read_bytes()
    bad = {
        "p0/fear.png": (data[:-30], "corrupt or truncated"),
        "p1/fear.png": (b"no image", "not an image"),
    }
    (root / "p0" / "fear_1.png").rename(root / "p0" / "joyy.png")
    for file, (content, _) in bad.items():
        (root / file).write_bytes(content)
    image(root / "loose.png")
    source = opened(root)
    assert source.files == good.files
    found = rows(root)
    for file, (_, reason) in bad.items():
        assert reason in found[file]["reason"]
    assert "did you mean 'joy'" in found["p0/joyy.png"]["reason"]
    assert "unlabelled" in found["loose.png"]["reason"]
    assert len(found) == 4
    people = sorted({p.identity for p in source.examples})
    stream = make_loader(source, people, batch_size=4, expressions_per_set=4, seed=0, workers=0)
    batch = next(stream)
    # Every image is the grey that its person and word were saved with, so none is a stand-in for a bad file.
    vectors = [parse_expression(word).vector for word in WORDS]
    for person, shown, pixels in zip(batch["identity"], batch["expression"], batch["target"], strict=True):
        words = [next(j for j, v in enumerate(vectors) if (v == e).all()) for e in shown]
        np.testing.assert_array_equal(pixels[:, 8, 8, 0], [50 * person + 10 * j for j in words])


def test_no_file_is_dropped_silently(root: Path) -> None:
    for name in (".DS_Store", "README.md", "p0/notes.txt", "p0/.joy.png.swp"):
        (root / name).write_text("x")
    image(root / "p0" / "more" / "joy.png")
    (root / "p0" / "back").symlink_to(root, target_is_directory=True)
    source = opened(root)
    found = rows(root)
    assert {f for f, row in found.items() if row["status"] == "ignored"} == {
        ".DS_Store",
        "README.md",
        "p0/notes.txt",
        "p0/.joy.png.swp",
    }
    assert {f for f, row in found.items() if row["status"] == "rejected"} == {"p0/more/joy.png", "p0/back"}
    assert len(source.examples) == 20


def test_too_many_bad_files_stop_the_run_and_ignored_files_do_not_count(root: Path) -> None:
    for i in range(30):
        (root / f"note{i}.txt").write_text("x")
    for i in range(5):
        (root / "p0" / f"joy_{i}.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"5 of 25 files \(20%\).*max_rejected=0.19"):
        opened(root, max_rejected=0.19)
    assert len(rows(root)) == 35  # written although the run stopped
    assert len(opened(root, max_rejected=0.2).examples) == 20


def test_a_person_left_with_one_expression_stops_the_run_and_is_named(root: Path) -> None:
    image(root / "p9" / "joy.png")
    image(root / "p9" / "joy_2.png")
    (root / "p9" / "anger.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"fewer than 2 different expressions: p9 \(1\)"):
        opened(root)


def test_an_empty_missing_or_useless_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        opened(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images found"):
        opened(tmp_path / "empty")
    (tmp_path / "bad" / "p").mkdir(parents=True)
    (tmp_path / "bad" / "p" / "joy.png").write_bytes(b"x")
    with pytest.raises(DataError, match="no usable image"):
        opened(tmp_path / "bad", max_rejected=0.9)


def test_metadata_jsonl_and_csv_give_the_same_source(root: Path) -> None:
    lines = all_lines(root)
    lines[3]["expression"] = "AU6=0.6,AU12=0.8"
    metadata(root, lines)
    from_jsonl = opened(root)
    assert {p.identity for p in from_jsonl.examples} == {f"person {i}" for i in range(4)}
    (root / "metadata.jsonl").unlink()
    quoted = [f'{line["identity"]},{line["file"]},"{line["expression"]}"' for line in lines]
    (root / "metadata.csv").write_text("\n".join(["identity,file_name,expression", *quoted]), "utf-8-sig")
    from_csv = opened(root)
    assert from_csv.files == from_jsonl.files
    for a, b in zip(from_csv.examples, from_jsonl.examples, strict=True):
        assert (a.identity, a.label, a.expression_key) == (b.identity, b.label, b.expression_key)


def test_with_metadata_unnamed_and_unlabelled_images_are_rejected(root: Path) -> None:
    lines = all_lines(root)
    lines[0]["expression"] = ""
    lines[1]["identity"] = None
    metadata(root, lines[:-1])
    source = opened(root)
    assert len(source.examples) == 17
    found = rows(root)
    assert "no expression" in found["p0/joy.png"]["reason"]
    assert "no identity" in found["p0/anger.png"]["reason"]
    assert "not named in metadata.jsonl" in found["p3/neutral.png"]["reason"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../secret.png"}, "line 1.*outside the folder"),
        ({"file": "p0/../../secret.png"}, "line 1.*outside the folder"),
        ({"file": "/etc/secret.png"}, "line 1.*outside the folder"),
        ({"file": "p0/missing.png"}, r"missing files: p0/missing.png \(line 1\)"),
        ({"file": "p1/../p0/anger.png"}, "line 2.*already named in line 1"),
        ({"identity": ["a"]}, "line 1: identity is .*must be a text"),
    ],
)
def test_bad_metadata_rows_stop_the_run_with_their_line(root: Path, change: dict[str, object], message: str) -> None:
    Image.new("RGB", (8, 8)).save(root.parent / "secret.png")
    lines = all_lines(root)
    lines[0] |= change
    metadata(root, lines)
    with pytest.raises(DataError, match=message):
        opened(root)


def test_malformed_metadata_files_are_refused(root: Path) -> None:
    for name, text, message in (
        ("metadata.jsonl", '{"image": "a.png", "identity": "p"}\n', "missing columns file or file_name, expression"),
        ("metadata.jsonl", "{broken\n", "line 1: not JSON"),
        ("metadata.jsonl", "[1]\n", "no JSON object"),
        ("metadata.csv", "file,identity\np0/joy.png,p0\n", "missing columns expression"),
        ("metadata.csv", "file,identity,expression\np0/joy.png,p0,AU6=1,AU12=1\n", "4 fields.*needs quotes"),
    ):
        (root / name).write_text(text)
        with pytest.raises(DataError, match=message):
            opened(root)
        (root / name).unlink()
    (root / "metadata.csv").write_text("")
    (root / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match=r"both metadata\.jsonl and metadata\.csv"):
        opened(root)


def test_a_file_that_breaks_after_the_check_is_an_error_that_names_it(root: Path) -> None:
    source = opened(root)
    (root / source.files[7]).unlink()
    with pytest.raises(DataError, match=source.files[7]):
        source.load(7)
    (root / source.files[8]).write_bytes(b"overwritten")
    with pytest.raises(DataError, match=source.files[8]):
        source.load(8)


def test_only_new_and_changed_files_are_decoded_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genaffect_jax.data.sources import folder

    read: list[str] = []
    real = folder.read_image

    def recorded(path: Path, image_size: int) -> np.ndarray:
        read.append(path.name)
        return real(path, image_size)

    (root / "p0" / "fear.png").write_bytes(b"broken")
    monkeypatch.setattr(folder, "read_image", recorded)
    opened(root)
    assert len(read) == 21
    read.clear()
    first = rows(root)
    opened(root)
    assert read == []
    assert rows(root) == first
    image(root / "p0" / "fear.png")
    assert len(opened(root).examples) == 21
    assert read == ["fear.png"]
    (root.parent / "work" / "checked.json").write_text("{ torn")
    read.clear()
    opened(root)
    assert len(read) == 21


def test_the_fingerprint_follows_files_labels_and_size(root: Path) -> None:
    prints = [opened(root).fingerprint(), open_folder(root, 8, 0.2, RunDir(root.parent / "work")).fingerprint()]
    assert opened(root).fingerprint() == prints[0]
    image(root / "p0" / "joy.png", 200)
    prints.append(opened(root).fingerprint())
    (root / "p0" / "joy.png").rename(root / "p0" / "fear.png")
    prints.append(opened(root).fingerprint())
    assert len(set(prints)) == 4


def test_the_fingerprint_of_images_that_moved_or_were_copied_anew_stays(root: Path, monkeypatch) -> None:
    before = opened(root).fingerprint()
    copy = shutil.copytree(root, root.parent / "elsewhere", copy_function=shutil.copyfile)  # with new times of change
    assert opened(copy).fingerprint() == before
    monkeypatch.chdir(root.parent)
    assert opened(Path("elsewhere")).fingerprint() == before
    image(copy / "p0" / "joy.png", 77)
    assert opened(copy).fingerprint() != before


def test_open_source_opens_the_folder_of_the_configuration(root: Path) -> None:
    config = DataConfig(source="folder", root=root, image_size=24)
    source = open_source(config, RunDir(root.parent / "work"))
    assert source.load(0).shape == (24, 24, 3)
    assert "20 images of 4 people, 5 different expressions" in source.describe()


def raw_image(root: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(root), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        Image.new("RGB", (20, 20)).save(file, "PNG")


def test_names_that_are_not_utf8_are_rejected_with_their_bytes_and_others_are_used(root: Path) -> None:
    for name in (b"M\xfcller/joy.png", b"p0/fr\xf6hlich.png", b"p0/notiz\xfc.txt", b"\xff"):
        raw_image(root, name)
    assert len(opened(root).examples) == 20
    found = rows(root)
    assert {file: row["status"] for file, row in found.items()} == {
        "M\\xfcller/joy.png": "rejected",
        "\\xff": "rejected",
        "p0/fr\\xf6hlich.png": "rejected",
        "p0/notiz\\xfc.txt": "ignored",
    }
    assert "not UTF-8" in found["\\xff"]["reason"]
    metadata(root, all_lines(root))
    assert len(opened(root).examples) == 20


def test_one_name_in_two_unicode_forms_is_one_person(root: Path) -> None:
    forms = [unicodedata.normalize(form, "Zoé") for form in ("NFC", "NFD")]
    image(root / forms[0] / "joy.png")
    image(root / forms[1] / "anger.png")
    people = [p.identity for p in opened(root).examples]
    assert people.count(forms[0]) == 2
    assert forms[1] not in people
    lines = [{"file": f"{forms[0]}/joy.png", "identity": form, "expression": "joy"} for form in forms]
    lines[1] |= {"file": f"{forms[0]}/anger.png", "expression": "anger"}  # on the disk in the other form
    metadata(root, [*all_lines(root), *lines])
    assert [p.identity for p in opened(root).examples].count(forms[0]) == 2
    metadata(root, [*all_lines(root), *lines, {**lines[1], "file": f"{forms[1]}/anger.png"}])
    with pytest.raises(DataError, match="already named in line 22"):
        opened(root)


@pytest.mark.parametrize("other", ["anna ", " anna", "an\u200bna", "\ufeffanna", "anna\u00a0", "an\u00adna"])
def test_two_names_that_look_the_same_are_one_person(root: Path, other: str) -> None:
    before = [e.identity for e in opened(root).examples].count("anna")
    for name in ("joy", "fear"):
        image(root / "anna" / f"{name}_7.png")
        image(root / other / f"{name}_8.png")
    image(root / " " / "joy.png")
    found = opened(root)
    assert [e.identity for e in found.examples].count("anna") == before + 4
    assert [row.reason for row in found.rejected if row.file == " /joy.png"] == [
        "unlabelled: the folder's name is blank"
    ]
    table = all_lines(root) + [
        {"file": f"anna/{name}.png", "identity": person, "expression": name[:-2]}
        for person, name in (("anna", "joy_7"), (other, "fear_7"))
    ]
    metadata(root, table)
    assert other not in {e.identity for e in opened(root).examples}


def test_a_folder_that_cannot_be_listed_is_rejected_by_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("p2"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(opened(root).examples) == 15
    assert rows(root)["p2"]["reason"] == "folder cannot be listed: Permission denied"


def test_names_without_a_suffix_keep_what_stands_behind_a_dot(root: Path) -> None:
    for name in ("AU12=0.5", "AU12=0.9", "joy:1.3", "fear_2", "joy.v2", "anger.JPEG"):
        raw_image(root, b"p0/" + name.encode())
    source = opened(root)
    labels = {file: example.label for file, example in zip(source.files, source.examples, strict=True)}
    assert labels["p0/AU12=0.5"] == "AU12=0.5"
    assert labels["p0/AU12=0.9"] == "AU12=0.9"
    assert labels["p0/joy:1.3"] == "joy:1.3"
    assert labels["p0/fear_2"] == "fear"
    assert labels["p0/anger.JPEG"] == "anger"
    assert "'.v2'" in rows(root)["p0/joy.v2"]["reason"]


def test_names_with_rich_markup_are_printed_as_they_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = root.parent / "[red]a" / "x]:joy:[bold"
    strange.parent.mkdir()
    root.rename(strange)
    image(strange / "p0" / "[/x].png")
    source = open_folder(strange, 16, 0.2, None)
    assert source.rejected[0].file == "p0/[/x].png"
    printed = capsys.readouterr().err
    assert str(strange) in printed
    assert "p0/[/x].png" in printed
