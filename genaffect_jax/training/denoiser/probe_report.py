"""The report of the conditioning probe: its metrics by name, the plot, and a warning where a condition is ignored.

Everything here reads rows of metrics.jsonl, so that a run that was continued is reported as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from genaffect_jax.io.atomic import new_file
from genaffect_jax.training.metric_log import Row

CONDITIONS = ("identity", "expression")
EVAL_LOSS = "eval/loss"
"""Metric: the loss on held-out people with the right conditions."""

# A condition counts as ignored if its relative gap stays below this, over this many consecutive measurements, none of
# them from the first quarter of the run, in which the branches leave zero.
IGNORED_BELOW = 0.01
IGNORED_FOR = 3
QUIET_UNTIL = 0.25

_TRY = {
    "identity": "check that the references of a set show the person of its targets, and that train.trainable covers "
    "the identity branch and its projector; raise train.learning_rate; lower flow.drop_identity; train longer",
    "expression": "check that the labels (expression vectors) fit the images, and that train.trainable covers the "
    "expression branch and its projector; raise flow.change_weight or auxiliary.expression_weight; lower "
    "flow.drop_expression, and raise flow.drop_text if prompts name the expression; train longer",
}


def gap(condition: str) -> str:
    """Metric: the growth of the loss with a wrong condition, in units of the loss."""
    return f"probe/{condition}"


def relative_gap(condition: str) -> str:
    """Metric: the gap as a share of `EVAL_LOSS`."""
    return f"probe/{condition}_relative"


def probe_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that hold measurements of the probe, in order; rows with a non-finite gap are left out."""
    return [row for row in rows if EVAL_LOSS in row and all(row[relative_gap(name)] is not None for name in CONDITIONS)]


def ignored(rows: Sequence[Row], steps: int) -> list[str]:
    """The conditions that a run of `steps` steps ignores so far, by its `probe_rows`."""
    late = [row for row in rows if row["step"] >= QUIET_UNTIL * steps][-IGNORED_FOR:]
    if len(late) < IGNORED_FOR:
        return []
    return [name for name in CONDITIONS if all(row[relative_gap(name)] < IGNORED_BELOW for row in late)]


def plot_probe(rows: Sequence[Row], path: Path) -> None:
    """Writes the plot, whole or not at all: relative gaps above, the three losses below.

    Args:
        rows: `probe_rows`, at least one.
        path: the file, a PNG.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("plot_probe: no rows")
    # Takes a second to import; processes that draw no plot do without.
    from matplotlib.figure import Figure

    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name in CONDITIONS:
        above.plot(steps, [100 * row[relative_gap(name)] for row in rows], marker=".", label=f"another {name}")
        below.plot(steps, [row[EVAL_LOSS] + row[gap(name)] for row in rows], marker=".", label=f"another {name}")
    below.plot(steps, [row[EVAL_LOSS] for row in rows], marker=".", color="black", label="right conditions")
    above.axhline(100 * IGNORED_BELOW, color="grey", linestyle=":", label="below: ignored")
    above.set_ylabel(f"gap, % of {EVAL_LOSS}")
    below.set_ylabel("loss, held-out people")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.legend()
        axes.grid(alpha=0.3)
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


class ProbeReport:
    """Warns of ignored conditions, each once until it is heard again."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def warn(self, rows: Sequence[Row], steps: int, console: Console) -> None:
        """Prints a warning for each condition that has come to be ignored since the last call.

        Args:
            rows: `probe_rows` of the run so far.
            steps: steps of the whole run.
            console: where to print.
        """
        now = ignored(rows, steps)
        for name in now:
            if name not in self._warned:
                console.print(
                    f"warning: step {rows[-1]['step']}: the denoiser ignores the {name}: with another {name} its loss "
                    f"on held-out people is {100 * rows[-1][relative_gap(name)]:+.2f} % of the right one. "
                    f"What to try: {_TRY[name]}",
                    style="yellow",
                    markup=False,
                    soft_wrap=True,
                )
        self._warned = set(now)
