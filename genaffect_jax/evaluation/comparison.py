"""Two reports beside each other: which differences are beyond noise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genaffect_jax.errors import DataError
from genaffect_jax.evaluation.catalogue import ABOUT, MEASURED_WITH
from genaffect_jax.metrics.bootstrap import Interval, paired_difference, unpaired_difference

# The report in the folder of an evaluation.
REPORT = "report.json"


@dataclass(frozen=True)
class Difference:
    """A figure of this report less that of the other."""

    here: float
    """The figure of this report."""
    there: float
    """That of the other."""
    difference: Interval
    """Here less there."""
    paired: bool
    """Whether both are of the same people with the same expressions, whose differences are then taken one by one."""

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval excludes 0."""
        return self.difference.excludes_zero


def read_report(path: Path) -> dict[str, Any]:
    """Reads a `report.json`, or that in a folder.

    Raises:
        DataError: there is none, or it is damaged.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        report = json.loads(file.read_text())
        report["settings"]["protocol"], report["settings"]["evaluators"], report["figures"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{file}: not readable as the report of an evaluation ({type(e).__name__}: {e})") from e
    return report


def compare(here: dict[str, Any], there: dict[str, Any], seed: int = 0) -> dict[str, Difference]:
    """The differences of all figures that both reports have for single people.

    Figures of `catalogue.MEASURED_WITH` are left out where the reports measured them in different ways.

    Args:
        here, there: contents of two `report.json`.
        seed: of the intervals.

    Raises:
        DataError: other evaluators read the images, so that no figure can be compared.
    """
    if here["settings"]["evaluators"] != there["settings"]["evaluators"]:
        raise DataError(
            f"the reports are of other evaluators ({there['settings']['evaluators']}, here "
            f"{here['settings']['evaluators']}): their figures cannot be compared"
        )
    paired = _people(here) == _people(there)
    found = {}
    for name in ABOUT:
        first, second = (_by_person(report, name) for report in (here, there))
        if not len(first) or not len(second) or not _measured_alike(name, here, there):
            continue
        difference = (paired_difference if paired else unpaired_difference)(first, second, seed)
        found[name] = Difference(_value(here, name), _value(there, name), difference, paired)
    return found


def _people(report: dict[str, Any]) -> tuple[Any, ...]:
    """All that decides the people and what was asked for; reports without `data` are of procedural people."""
    settings = report["settings"]
    data = settings.get("data", {"source": "procedural"})
    return settings["protocol"], data["source"], data.get("fingerprint"), data.get("left_out", {})


def _measured_alike(name: str, here: dict[str, Any], there: dict[str, Any]) -> bool:
    setting = MEASURED_WITH.get(name)
    return setting is None or here["settings"].get(setting) == there["settings"].get(setting)


def _value(report: dict[str, Any], name: str) -> float:
    value = report["figures"][name]["value"]["value"]
    return float("nan") if value is None else float(value)


def _by_person(report: dict[str, Any], name: str) -> np.ndarray:
    values = (report["figures"].get(name) or {}).get("by_person") or []
    return np.array([np.nan if value is None else value for value in values], np.float64)
