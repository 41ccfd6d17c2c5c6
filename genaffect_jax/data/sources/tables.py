"""The table of an image folder, `metadata.jsonl` or `metadata.csv`: file, identity and expression of each row."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from genaffect_jax.errors import DataError

METADATA: tuple[str, ...] = ("metadata.jsonl", "metadata.csv")
# `file_name` is the column's name in Hugging Face's imagefolder.
FILE_COLUMNS: tuple[str, ...] = ("file", "file_name")
_READ = (*FILE_COLUMNS, "identity", "expression")
# How programs write that there is no value, where they should leave the field empty.
_NO_VALUE: frozenset[str] = frozenset({"", "nan", "NaN", "NAN", "<NA>", "NaT", "None", "null", "NULL", "N/A", "#N/A"})


# Zero-width space, word joiner, byte order mark, soft hyphen. Joiners of letters (U+200C, U+200D) do change a name.
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")


@dataclass(frozen=True)
class TableRow:
    """One row as written; identity and expression are empty if there is none."""

    line: int
    """Line of the table, from 1."""
    file: str
    identity: str
    """As `person_name` writes it."""
    expression: str


def read_table(path: Path) -> list[TableRow]:
    """Reads a table.

    Raises:
        DataError: it is malformed: no UTF-8, no JSON or CSV, missing columns, a column that is read named twice, two
            different files in one row, or a value that is no text. The message names the line.
    """
    rows = _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
    return [_row(values, line, f"{path}, line {line}") for line, values in rows]


def is_table(path: Path) -> bool:
    """Whether the first row of a file has all columns of a table of images; the others may be wrong."""
    try:
        text = _read(path)
        if path.suffix == ".jsonl":
            names = set(json.loads(next((line for line in text.split("\n") if line.strip()), "0")))
        else:
            names = {name.strip() for name in next(csv.reader(text.split("\n"), skipinitialspace=True), [])}
    except (DataError, OSError, ValueError, TypeError, RecursionError, csv.Error):
        return False
    return {"identity", "expression"} <= names and not names.isdisjoint(FILE_COLUMNS)


def _row(values: dict[str, object], line: int, where: str) -> TableRow:
    columns = [c for c in FILE_COLUMNS if c in values]
    absent = [c for c in ("identity", "expression") if c not in values]
    if not columns or absent:
        wanted = [*([] if columns else [" or ".join(FILE_COLUMNS)]), *absent]
        raise DataError(f"{where}: missing columns {', '.join(wanted)} (found: {', '.join(values) or 'none'})")
    files = [_text(values[column], column, where) for column in columns]
    if len(set(files)) > 1:
        raise DataError(f"{where}: {' and '.join(columns)} differ ({', '.join(map(repr, files))}); keep one of them")
    if not files[0]:
        raise DataError(f"{where}: {columns[0]} is empty")
    identity, expression = (_text(values[c], c, where) for c in ("identity", "expression"))
    identity, expression = ("" if text in _NO_VALUE else text for text in (identity, expression))
    return TableRow(line, files[0], person_name(identity), expression)


def person_name(text: str) -> str:
    """The name in the form in which people are compared, so that two who look the same are one.

    It is in Unicode's composed form (NFC), without characters that have no width and no meaning in a name, and without
    white space at its ends.
    """
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).strip()


def _text(value: object, column: str, where: str) -> str:
    if value is None or value != value:  # NaN, as json and pandas write a missing value, differs from itself
        return ""
    if isinstance(value, (dict, list, bool)) or value in (float("inf"), float("-inf")):
        raise DataError(f"{where}: {column} is {json.dumps(value)[:60]}; must be a text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes whole numbers as 1.0 if any value of the column is missing
    text = str(value).strip()
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where}: {column} is {json.dumps(text)[:60]}, half a character")
    if "\n" in text or "\0" in text:
        raise DataError(f"{where}: {column} is {text[:60]!r}, more than one line (a quote that is not closed?)")
    return text


def _read_jsonl(path: Path) -> list[tuple[int, dict[str, object]]]:
    rows: list[tuple[int, dict[str, object]]] = []
    # Not `splitlines`: JSON allows U+2028, U+2029 and U+0085 inside texts.
    for line, text in enumerate(_read(path).split("\n"), 1):
        if not text.strip():
            continue
        where = f"{path}, line {line}"
        try:
            pairs = json.loads(text, object_pairs_hook=_Object)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{where}: not JSON ({e})") from e
        if not isinstance(pairs, _Object):
            raise DataError(f"{where}: {text[:60]!r} is no JSON object")
        _refuse_twice([name for name, _ in pairs.pairs], where)
        rows.append((line, dict(pairs)))
    return rows


class _Object(dict[str, object]):
    """A JSON object that remembers names written twice."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _read_csv(path: Path) -> list[tuple[int, dict[str, object]]]:
    text = _read(path)
    # The module's own limit of 131,072 characters would refuse long texts in columns that are not read.
    limit = csv.field_size_limit(max(len(text) + 1, csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    rows: list[tuple[int, dict[str, object]]] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        _refuse_twice(header, f"{path}, line 1")
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(values)} fields, the header has {len(header)} "
                    "(a text with commas needs quotes)"
                )
            rows.append((reader.line_num, dict(zip(header, values, strict=True))))
    except csv.Error as e:
        raise DataError(f"{path}, line {reader.line_num}: {e}") from e
    finally:
        csv.field_size_limit(limit)
    return rows


def _refuse_twice(names: list[str], where: str) -> None:
    twice = [name for name in _READ if names.count(name) > 1]
    if twice:
        raise DataError(
            f"{where}: column {twice[0]} is there {names.count(twice[0])} times; keep the one that is right"
        )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 text ({e})") from e
