"""Every row of the table of faults in the guide names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide" / "fault_tolerance.md"
HEADING = "| fault | what happens | what you see | what to do | test |"


def rows():
    """The fault and the column of tests of each row."""
    lines = GUIDE.read_text(encoding="utf-8").split("\n")
    first = lines.index(HEADING) + 2
    table = lines[first : next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))]
    for line in table:
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        assert len(cells) == 5, line
        yield cells[0].strip(), cells[-1].strip()


def missing(column):
    """What a column of tests names that is not there; an empty column names nothing."""
    found, file = [], None
    for name in re.findall(r"`([^`]+)`", column):
        if "/" in name:
            file = ROOT / name.split()[0]
            found += [] if file.is_file() else [name]
        elif file is not None and file.is_file():
            beginning = re.escape(name.removesuffix("..."))
            end = "" if name.endswith("...") else r"\("
            found += [] if re.search(rf"^def test_{beginning}{end}", file.read_text(), re.MULTILINE) else [name]
    return found if file is not None else ["a file of tests"]


def test_every_fault_of_the_guide_names_tests_that_exist():
    table = list(rows())
    assert len(table) > 30
    assert {fault: names for fault, column in table if (names := missing(column))} == {}


def test_a_name_that_is_wrong_would_be_found():
    here = "`tests/system/test_fault_table.py`"
    assert missing(f"{here}: `a_name_that_is_wrong...`, `every_fault_of_the_guide_names_tests_that_exist`") == []
    assert missing(f"{here}: `a_name_that_is...`, `every_fault_of`") == ["every_fault_of"]
    assert missing("`tests/none.py`") == ["tests/none.py"]
    assert missing("later") == ["a file of tests"]
