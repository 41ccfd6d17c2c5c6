"""Progress bar on stderr: share done, rate and remaining time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        if not task.elapsed or not task.completed:
            return Text("-/s")
        rate = task.completed / task.elapsed
        return Text(f"{rate:.0f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar while the block runs; call the yielded function with the number of newly finished items.

    No bar is shown if `total` is 0. Without a terminal (in a log file), one line is printed at the end.
    """
    if total == 0:
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
