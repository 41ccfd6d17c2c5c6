"""Tables of image folders made of random pieces: each is read or refused in one error, and no file is lost.

    python benchmarks/fuzz_image_tables.py [--count 20000] [--seed 0]

Half of the tables are CSV, half JSON Lines. Status 1 and one line for each table that ends in another error than
`DataError`, that leaves a file of the folder in none or two of the three lists, or whose people are no plain text.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np

from genaffect_jax.data.sources.layouts import list_folder
from genaffect_jax.errors import DataError
from genaffect_jax.expressions.grammar import ExpressionError, parse_expression

FILES = ("a.png", "b.png", "sub/c.png", "e\u0301.png", "AU12=0.5")
FIELDS = ["file", "file_name", "identity", "expression", "text", " identity", "Identity", ""]
TEXTS = [
    *FILES,
    "\u00e9.png",
    "./a.png",
    "../a.png",
    "/a.png",
    "sub/../a.png",
    "x" * 300,
    "anna",
    "Zoe\u0301",
    "Zo\u00e9",
]
TEXTS += [
    "joy",
    "AU6=0.5,AU12=0.8",
    "afraid",
    "nan",
    "None",
    "",
    " ",
    "\u2028",
    "\x85",
    "\ud800",
    "\0",
    "\r",
    "\n",
    '"',
    "[/x]",
]
VALUES = [None, True, 0, 1, 1.0, 1.5, float("nan"), float("inf"), 10**400, [], {}, [["a"]], {"a": None}]
MARKS = [",", ", ", '"', '""', "\n", "\r\n", "\n\n", ";", "\t", " ", "\ufeff", "'"]


def csv_table(rng: np.random.Generator) -> str:
    """A header that mostly fits, and rows of fields, quotes and separators."""
    header = "file,identity,expression" if rng.random() < 0.7 else ",".join(rng.choice(FIELDS, 4))
    rows = []
    for _ in range(int(rng.integers(0, 5))):
        fields = [FILES[int(rng.integers(len(FILES)))], *(TEXTS[int(i)] for i in rng.integers(len(TEXTS), size=2))]
        if rng.random() < 0.3:
            fields.insert(int(rng.integers(4)), MARKS[int(rng.integers(len(MARKS)))])
        quote = '"' if rng.random() < 0.4 else ""
        rows.append((", " if rng.random() < 0.3 else ",").join(f"{quote}{field}{quote}" for field in fields))
    return "\n".join([header, *rows])


def json_lines(rng: np.random.Generator) -> str:
    """Objects of the columns with any values; sometimes cut off."""
    lines = []
    for _ in range(int(rng.integers(0, 5))):
        entry: dict[str, object] = {
            "file": FILES[int(rng.integers(len(FILES)))],
            "identity": "anna",
            "expression": "joy",
        }
        for _ in range(int(rng.integers(0, 3))):
            pool = TEXTS if rng.random() < 0.6 else VALUES
            entry[str(rng.choice(FIELDS))] = pool[int(rng.integers(len(pool)))]
        line = json.dumps(entry, ensure_ascii=bool(rng.random() < 0.5))
        lines.append(line[: int(rng.integers(1, len(line)))] if rng.random() < 0.1 else line)
    return "\n".join(lines)


def fault_of(root: Path) -> tuple[str, str | None]:
    """`read` or `refused`, and what is wrong with that, if anything is."""
    try:
        listing = list_folder(root)
    except DataError as e:
        return "refused", "a message of several lines" if "\n" in str(e) else None
    except Exception as e:
        return "refused", f"{type(e).__name__}: {e}"
    names = [row.file for row in [*listing.rejected, *listing.ignored]] + [
        labelled.file for labelled in listing.labelled
    ]
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    if sorted(names) != sorted(file for file in files if not file.startswith("metadata.")):
        return "read", f"files {sorted(files)}, listed {sorted(names)}"
    for labelled in listing.labelled:
        identity = labelled.identity
        if identity != unicodedata.normalize("NFC", identity).strip() or not identity.encode():
            return "read", f"identity {identity!r}"
        try:
            parse_expression(labelled.expression)
        except ExpressionError as e:
            if "\n" in str(e):
                return "read", f"expression {labelled.expression!r}: a message of several lines"
    return "read", None


def run(count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """Tries `count` tables; returns how many were read and refused, and one line for each fault."""
    rng = np.random.default_rng(seed)
    outcomes: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for file in FILES:
            (root / file).parent.mkdir(exist_ok=True)
            (root / file).touch()
        for trial in range(count):
            name, text = ("metadata.csv", csv_table(rng)) if trial % 2 else ("metadata.jsonl", json_lines(rng))
            (root / name).write_bytes(text.encode("utf-8", "surrogatepass" if rng.random() < 0.1 else "replace"))
            outcome, fault = fault_of(root)
            outcomes[outcome] += 1
            if fault:
                faults.append(f"trial {trial}, {name}, {text[:200]!r}: {fault}")
            (root / name).unlink()
    return outcomes, faults


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000, help="tables to try")
    parser.add_argument("--seed", type=int, default=0, help="of the random tables")
    arguments = parser.parse_args()
    outcomes, faults = run(arguments.count, arguments.seed)
    print("\n".join(faults[:50]))
    print(f"{sum(outcomes.values())} tables ({dict(outcomes)}): {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
