"""Standard output and error: what is printed is plain text, and what cannot be printed decides nothing else.

Names of files and people come from others. A terminal would obey an escape sequence in them, and a line end in a name
would make two messages of one.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from rich.console import Console

_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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


def one_line(text: str) -> str:
    """The text in one line that moves nothing on a terminal.

    Control characters (ESC, CR, LF, DEL, C1), line and paragraph separators and marks that change the direction of
    writing become `\\x1b`, `\\n`, `\\u202e`; bytes of a file name that are not UTF-8 become `\\xfc`.
    """
    return _NOT_SHOWN.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    undecoded = "\udc80" <= character <= "\udcff"  # a byte, as os.fsdecode gives it
    return f"\\x{ord(character) - 0xDC00:02x}" if undecoded else character.encode("unicode_escape").decode("ascii")


class PlainConsole(Console):
    """A console that prints texts as they are, each as one line (`one_line`).

    rich's own notation, such as `[red]` or `:joy:`, may stand in a path and means nothing here.

    Args:
        quiet: print nothing.
        stderr: write to standard error.
    """

    def __init__(self, *, quiet: bool = False, stderr: bool = True) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, with every text in one line."""
        super().print(*(one_line(o) if isinstance(o, str) else o for o in objects), **options)


def print_plainly(console: Console, line: str) -> None:
    """Prints a line that a user should notice."""
    console.print(one_line(line), style="yellow", markup=False, emoji=False, highlight=False, soft_wrap=True)


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


@contextmanager
def warned_in_one_line(category: type[Warning]) -> Iterator[None]:
    """Prints every warning of a class as one line, without the place in the code that Python prints before it."""

    def show(message: Warning | str, found: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(found, category):
            print(one_line(f"warning: {message}"), file=sys.stderr)
        else:
            as_before(message, found, *rest, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", category)
        as_before, warnings.showwarning = warnings.showwarning, show  # type: ignore[assignment]
        yield
