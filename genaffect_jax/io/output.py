"""Standard output and error that nobody reads: what cannot be printed is dropped, and decides nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from rich.console import Console


@contextmanager
def expendable_output() -> Iterator[None]:
    """Makes `sys.stdout` and `sys.stderr` streams whose failures are not errors, in this block.

    A pipe without reader (`| head`, `| tee` after Ctrl-C), a closed terminal and a full disk make `print` raise an
    OSError. rich even ends the process. From the first failure on, what is written to that stream is discarded.
    """
    streams = [_Expendable(stream) for stream in (sys.stdout, sys.stderr)]
    out, err = cast(list[TextIO], streams)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        for stream in streams:
            stream.flush()  # else it would fail when Python ends


def print_plainly(console: Console, line: str) -> None:
    """Prints a line that a user should notice, as it is: paths in it may look like rich's markup."""
    console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


class _Expendable:
    """A stream like `stream`, without its OSErrors."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, or discards."""
        self._without_error(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Passes on what is buffered, or discards it."""
        self._without_error(self._stream.flush)

    def _without_error(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError:
            # The descriptor itself leads nowhere from now on: what is still in the stream's buffer would fail again
            # when Python ends, and change the exit status.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
