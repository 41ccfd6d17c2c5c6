"""Ablations of sampling: the same model, people, expressions and seeds under other settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from genaffect_jax.config import SamplingConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.evaluation.catalogue import ABOUT
from genaffect_jax.evaluation.comparison import Difference, compare
from genaffect_jax.evaluation.report import AIM, NOT_MEASURED, as_json, write_report
from genaffect_jax.evaluation.run import SETTINGS, Cost, EvaluationRun, run_evaluation
from genaffect_jax.io.atomic import write_atomically

PLAIN = "plain"
# Figures of the table; all are in the report of each setting.
COLUMNS = (
    "identity",
    "copy_score",
    "set_consistency",
    "expression_error",
    "expression_gain",
    "word_top5",
    "sharpness",
    "background_variation",
)


@dataclass(frozen=True)
class Ablation:
    """One setting beside the plain one."""

    differences: Mapping[str, Difference]
    """This setting less the plain one, over the same people."""
    seconds: float | None
    """Sampling time of a person; None if it was not measured."""


def ablated_settings(plain: SamplingConfig) -> dict[str, SamplingConfig]:
    """All settings by name; the first is `plain` without shared tokens and with noise for each image."""
    plain = dataclasses.replace(plain, consistency=0.0, anchors=None, set_seed_noise="per-item")
    half = max(1, plain.steps // 2)
    changes: dict[str, dict[str, Any]] = {
        PLAIN: {},
        **{f"consistency-{share:g}": {"consistency": share} for share in (0.25, 0.5, 0.75, 1.0)},
        "consistency-0.5-anchors-4": {"consistency": 0.5, "anchors": 4},  # the others have eight
        "shared-noise": {"set_seed_noise": "shared"},
        "no-guidance": {"guidance": 1.0},
        "joint-guidance-1.5": {"guidance": 1.5},
        "identity-guidance-1.5": {"guidance_identity": 1.5, "guidance_expression": 1.0},
        "both-guidances-1.5": {"guidance_identity": 1.5, "guidance_expression": 1.5},
    }
    if plain.steps > 1:
        changes["consistency-0.5-early"] = {"consistency": 0.5, "consistency_end": half}
        changes["consistency-0.5-late"] = {"consistency": 0.5, "consistency_start": half}
    return {name: dataclasses.replace(plain, **change) for name, change in changes.items()}


def run_ablations(run: EvaluationRun, out: Path) -> dict[str, Ablation]:
    """Evaluates every setting in a folder of its own below `out`; continues where it was stopped.

    Args:
        run: the evaluation; its sampling settings are those that all have in common.
        out: folder for the settings' folders and `ablations.md`.

    Raises:
        ConfigError, DataError, MemoryLimitError: see `run_evaluation`.
    """
    if (out / SETTINGS).exists():
        raise ConfigError("holds an evaluation without ablations; choose another folder", field="out", found=out)
    found: dict[str, Ablation] = {}
    plain: dict[str, Any] = {}
    for name, sampling in ablated_settings(run.sampling).items():
        one = dataclasses.replace(run, sampling=sampling)
        evaluation = run_evaluation(one, out / name)
        report = as_json(evaluation, one.settings)
        plain = plain or report
        differences = compare(report, plain, sampling.seed)
        write_report(evaluation, one.settings, out / name, None if name == PLAIN else differences)
        cost = Cost.read(out / name)
        found[name] = Ablation(differences, cost.sampling_seconds / cost.people if cost.people else None)
    write_atomically(out / "ablations.md", ablations_as_markdown(found))
    return found


def ablations_as_markdown(ablations: Mapping[str, Ablation]) -> str:
    """The table as a page."""
    header, *rows = _cells(ablations)
    lines = ["# Ablations", "", *_explanation(), "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def ablations_as_table(ablations: Mapping[str, Ablation]) -> Table:
    """The table for the terminal."""
    header, *rows = _cells(ablations)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    return table


def _explanation() -> list[str]:
    return [
        "Same model, people, expressions and seeds. A star marks a difference from the plain setting whose 95 %",
        "interval, over the same people, excludes 0. One in twenty comparisons without a difference does so by chance.",
    ]


def _cells(ablations: Mapping[str, Ablation]) -> list[list[str]]:
    rows = [["setting", *(f"{name} {AIM[ABOUT[name].better]}" for name in COLUMNS), "sampling, s a person"]]
    for name, ablation in ablations.items():
        values = [
            NOT_MEASURED if found is None else f"{found.here:.3f}{' *' if found.beyond_noise else ''}"
            for found in (ablation.differences.get(column) for column in COLUMNS)
        ]
        rows.append([name, *values, NOT_MEASURED if ablation.seconds is None else f"{ablation.seconds:.2f}"])
    return rows
