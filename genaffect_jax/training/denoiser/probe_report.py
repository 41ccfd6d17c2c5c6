"""What becomes of the conditioning probe: the plot `probe_report.png`, and a warning where a condition is ignored.

Both read metrics.jsonl, so a run that was continued reports all of itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from genaffect_jax.training.denoiser.conditioning_probe import CONDITIONS, RIGHT

PLOT_FILE = "probe.png"
# A condition counts as ignored if its gap stays below this share of the right loss, over this many measurements, none
# of them from the first quarter of the run, in which the branches leave zero.
IGNORED_BELOW = 0.01
IGNORED_FOR = 3
QUIET_UNTIL = 0.25

_TRY = {
    "identity": "check that the references of a set show the person of its targets, and that train.trainable covers "
    "the identity branch and its tokens; raise train.learning_rate; lower flow.drop_identity; train longer",
    "expression": "check that the labels (expression vectors) fit the images, and that train.trainable covers the "
    "expression branch and its tokens; raise flow.change_weight or auxiliary.expression_weight; lower "
    "flow.drop_expression, and raise flow.drop_text if prompts name the expression; train longer",
}

Row = Mapping[str, float]


def read_gaps(workdir: Path) -> list[Row]:
    """The rows of a run folder's metrics.jsonl that hold gaps, in order; rows with a number that is not finite
    are left out. Empty if there is no such file."""
    path = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        row for row in rows if RIGHT in row and all(row[f"probe/{name}_relative"] is not None for name in CONDITIONS)
    ]


def ignored(rows: Sequence[Row], steps: int) -> list[str]:
    """The conditions that a run of `steps` steps ignores so far, by its rows of `read_gaps`."""
    late = [row for row in rows if row["step"] >= QUIET_UNTIL * steps][-IGNORED_FOR:]
    if len(late) < IGNORED_FOR:
        return []
    return [name for name in CONDITIONS if all(row[f"probe/{name}_relative"] < IGNORED_BELOW for row in late)]


def plot_probe(rows: Sequence[Row], path: Path) -> None:
    """Writes the plot, whole or not at all: relative gaps above, the three losses below.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("plot_probe: no rows")
    # Takes a second to import, which processes that draw no plot need not wait for.
    from matplotlib.figure import Figure

    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name in CONDITIONS:
        above.plot(steps, [100 * row[f"probe/{name}_relative"] for row in rows], marker=".", label=f"another {name}")
        below.plot(steps, [row[RIGHT] + row[f"probe/{name}"] for row in rows], marker=".", label=f"another {name}")
    below.plot(steps, [row[RIGHT] for row in rows], marker=".", color="black", label="right conditions")
    above.axhline(100 * IGNORED_BELOW, color="grey", linestyle=":", label="below: ignored")
    above.set_ylabel("gap, % of the right loss")
    below.set_ylabel("loss, held-out people")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.legend()
        axes.grid(alpha=0.3)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=110)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class ProbeReport:
    """Watches the gaps of one run; of several processes, the one that writes metrics.jsonl."""

    def __init__(self, workdir: Path, steps: int, console: Console, watches: bool = True) -> None:
        self._workdir, self._steps, self._console, self._watches = workdir, steps, console, watches
        self._warned: set[str] = set()

    def check(self) -> None:
        """Warns of each condition that has come to be ignored, once until it is heard again."""
        if not self._watches:
            return
        rows = read_gaps(self._workdir)
        now = ignored(rows, self._steps)
        for name in now:
            if name not in self._warned:
                self._console.print(
                    f"warning: step {rows[-1]['step']}: the denoiser ignores the {name}: with another {name} its loss "
                    f"on held-out people is {100 * rows[-1][f'probe/{name}_relative']:+.2f} % of the right one. "
                    f"What to try: {_TRY[name]}",
                    style="yellow",
                    markup=False,
                    soft_wrap=True,
                )
        self._warned = set(now)

    def draw(self) -> None:
        """Writes `probe_report.png`, once there is something to draw."""
        rows = read_gaps(self._workdir) if self._watches else []
        if rows:
            plot_probe(rows, self._workdir / PLOT_FILE)
