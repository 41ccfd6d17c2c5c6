"""Progress bars on stderr: share done, rate and remaining time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from genaffect_jax.errors import ConfigError, shown

# Called with (items done, items in all), and with one line.
Done, Tell = Callable[[int, int], None], Callable[[str], object]


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


@contextmanager
def chunk_bar(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar for work that comes in few large chunks; call the yielded function with (done, in all).

    A spinner and the time show that a chunk is on its way. Without a terminal (in a log file), one line is printed for
    every chunk.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if not console.is_terminal:
                console.print(f"{what}: {done} of {total}")

        yield progress


@contextmanager
def watched(progress: Done | bool | None, tell: Tell | None) -> Iterator[tuple[Done | None, Tell | None]]:
    """The functions that stand for what a caller gave: True is a bar on stderr, with all lines.

    Raises:
        ConfigError: one is neither a function nor, for `progress`, True or False.
    """
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise ConfigError("must be True, False or a function of two numbers", field="progress", found=shown(progress))
    if tell is not None and not callable(tell):
        raise ConfigError("must be a function of one line", field="tell", found=shown(tell))
    if progress is not True:
        yield (progress or None), tell
        return
    console = Console(stderr=True, markup=False, emoji=False)
    with chunk_bar("sampling", console) as bar:
        yield bar, tell or (lambda line: console.print(line, soft_wrap=True, highlight=False))
