"""Tables of an image folder: what is read, and what is refused with its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from genaffect_jax.data.sources.folder import open_folder
from genaffect_jax.data.sources.layouts import list_folder
from genaffect_jax.data.sources.tables import TableRow, read_table
from genaffect_jax.errors import DataError

HEADER = "file_name,identity,expression"


def jsonl(folder: Path, *lines: object) -> Path:
    path = folder / "metadata.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", "utf-8")
    return path


def table(folder: Path, *lines: str) -> Path:
    path = folder / "metadata.csv"
    path.write_text("\n".join(lines), "utf-8")
    return path


def row(**changes: object) -> dict[str, object]:
    return {"file": "a.png", "identity": "anna", "expression": "joy"} | changes


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_json_lines_may_hold_every_line_separator_of_unicode_in_a_text(tmp_path: Path, character: str) -> None:
    path = jsonl(tmp_path, row(text=f"a{character}b"), row(file="b.png"))
    assert [r.file for r in read_table(path)] == ["a.png", "b.png"]


@pytest.mark.parametrize("value", [float("nan"), None, "", "  ", "nan", "NaN", "<NA>", "None"])
def test_a_missing_identity_is_no_person(tmp_path: Path, value: object) -> None:
    assert read_table(jsonl(tmp_path, row(identity=value))) == [TableRow(1, "a.png", "", "joy")]
    assert read_table(jsonl(tmp_path, row(expression=value))) == [TableRow(1, "a.png", "anna", "")]
    written = "" if value is None else str(value)
    assert read_table(table(tmp_path, HEADER, f"a.png,{written},joy")) == [TableRow(2, "a.png", "", "joy")]


def test_a_number_is_one_person_whether_it_is_written_whole_or_not(tmp_path: Path) -> None:
    rows = read_table(jsonl(tmp_path, row(identity=7), row(identity=7.0), row(identity="7"), row(identity=7.5)))
    assert [r.identity for r in rows] == ["7", "7", "7", "7.5"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "a", "identity": "x", "identity": "y", "expression": "joy"}', "column identity is there 2 times"),
        (row(file_name="b.png"), "file and file_name differ"),
        ('{"file": "a", "identity": "\\ud800", "expression": "joy"}', "half a character"),
        ('{"file": "a\\u0000b", "identity": "x", "expression": "joy"}', "more than one line"),
        ('{"file": "a", "identity": Infinity, "expression": "joy"}', "identity is Infinity"),
        ('{"file": ' + "1" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"file": "a", "identity": {"a": 1}, "expression": "joy"}', "must be a text"),
        (row(identity="a\nb"), "more than one line"),
    ],
)
def test_json_that_cannot_be_right_is_refused_with_its_line(tmp_path: Path, line: object, message: str) -> None:
    path = jsonl(tmp_path, row(), line)
    with pytest.raises(DataError, match=f"line 2: .*{message}"):
        read_table(path)


def test_a_csv_column_that_is_read_stands_there_once_and_others_may_repeat(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: column identity is there 2 times"):
        read_table(table(tmp_path, "file,identity, identity,expression", "a.png,anna,set1,joy"))
    rows = read_table(table(tmp_path, f"{HEADER},note,note", "a.png,anna,joy,1,2"))
    assert rows == [TableRow(2, "a.png", "anna", "joy")]


def test_a_long_text_in_another_column_is_no_obstacle_and_changes_no_limit(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    rows = read_table(table(tmp_path, f"{HEADER},mask", f"a.png,anna,joy,{'x' * 200_000}"))
    assert rows == [TableRow(2, "a.png", "anna", "joy")]
    assert csv.field_size_limit() == limit


def test_spaces_around_quotes_and_empty_rows_do_not_matter(tmp_path: Path) -> None:
    path = table(tmp_path, 'file_name, "identity", expression', 'a.png, "anna" , "AU6=0.5,AU12=0.8"', ",,", "", "  ")
    assert read_table(path) == [TableRow(2, "a.png", "anna", "AU6=0.5,AU12=0.8")]


def test_a_quote_that_is_not_closed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a quote that is not closed"):
        read_table(table(tmp_path, HEADER, 'a.png,anna,"joy', "b.png,anna,anger"))


def images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(folder / name)


def test_a_table_one_folder_below_is_named_and_another_tables_text_is_not_mistaken_for_one(tmp_path: Path) -> None:
    images(tmp_path / "set" / "train")
    table(tmp_path / "set" / "train", "note,date", "x,y")
    assert len(list_folder(tmp_path / "set").ignored) == 1
    table(tmp_path / "set" / "train", HEADER, "a.png,anna,joy", "b.png")  # one row is wrong: still a table
    with pytest.raises(DataError, match=r"has no table of its own, but train/metadata.csv is one.*set/train\)"):
        list_folder(tmp_path / "set")


def test_a_table_one_folder_above_is_named_when_the_folder_cannot_be_used(tmp_path: Path) -> None:
    images(tmp_path / "set" / "images")
    table(tmp_path / "set", HEADER, "images/a.png,anna,joy", "./images/b.png,anna,anger")
    with pytest.raises(DataError, match=r"set/metadata.csv names files of this folder: to use it, data.root is .*set$"):
        open_folder(tmp_path / "set" / "images", 8, 0.5, None)
    assert len(open_folder(tmp_path / "set", 8, 0.5, None).examples) == 2


def test_a_name_too_long_for_the_file_system_is_a_missing_file(tmp_path: Path) -> None:
    jsonl(tmp_path, row(file="x" * 5000))
    with pytest.raises(DataError, match="names missing files"):
        list_folder(tmp_path)


def test_random_tables_are_read_or_refused_in_one_error_and_lose_no_file(load_benchmark) -> None:
    outcomes, faults = load_benchmark("fuzz_image_tables").run(1000, seed=1)
    assert faults == []
    assert min(outcomes["read"], outcomes["refused"]) > 100
