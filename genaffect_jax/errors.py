"""All errors that this package raises on purpose, the exit status of each, and warnings with a class of their own.

An error names the thing, what was found and what is allowed. An error about a setting names its field (`chunk`), as in
Python; a command shows it as an option (`--chunk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

MOST_CHARACTERS = 2000
"""Length of a message, and of the value that it shows. What libraries and files of others put into one has no limit."""
# LOST is EX_TEMPFAIL of sysexits.h: nothing is wrong in this process, and the same command may succeed later.
COMPLETE, FAILED, WRONG_ARGUMENT, LOST, INTERRUPTED = 0, 1, 2, 75, 130


class GenAffectError(Exception):
    """Base class of the errors of this package.

    Args:
        reason: what is wrong and what is allowed; the whole message if there is no field.
        field: the setting that the error is about.
        found: the value that it had.
    """

    def __init__(self, reason: str, *, field: str | None = None, found: object = None) -> None:
        self.reason, self.field = shortened(reason), field
        self.found = found if found is None or len(str(found)) <= MOST_CHARACTERS else shortened(str(found))
        super().__init__(
            self.reason if field is None else f"{field}{'' if found is None else f'={self.found}'}: {self.reason}"
        )

    @property
    def on_command_line(self) -> str:
        """The message in the words of a command line: `--chunk 0: must be at least 1`."""
        if self.field is None:
            return self.reason
        # An option that was not given is shown without a value.
        return f"--{self.field}{'' if self.found in (None, 'None') else f' {self.found}'}: {self.reason}"

    def renamed(self, field: str) -> Self:
        """The same error about a field of another name."""
        return type(self)(self.reason, field=field, found=self.found)


class ConfigError(GenAffectError, ValueError):
    """A setting has a value that is not allowed, or does not go with another."""


class ExpressionError(GenAffectError, ValueError):
    """A text is not a valid expression; the message names the token, what was found and what is allowed."""


class DataError(GenAffectError, ValueError):
    """Images, labels or tables cannot be used; the message names the file."""


class WeightsError(GenAffectError, ValueError):
    """A weight file is missing, is damaged or does not fit the network; the message names file and keys."""


class TopologyError(GenAffectError, ValueError):
    """A topology does not exist, its chip is unknown, or the TPU compiler is not installed; the message says which."""


class CheckpointError(GenAffectError, RuntimeError):
    """A checkpoint is missing, does not fit, or cannot be written."""


class TrainingError(GenAffectError, RuntimeError):
    """Training cannot go on; the message says why and what to change."""


class SamplingError(GenAffectError, RuntimeError):
    """Sampling gave no image that can be used; the message says which settings to change."""


class OutputError(GenAffectError, RuntimeError):
    """What was made cannot be written; the message names the folder or file, and what became of what was there."""


class InUseError(GenAffectError, RuntimeError):
    """Another process is changing the same folder; the message names its host and number."""


class MemoryLimitError(GenAffectError, RuntimeError):
    """A program needs more memory than a device has; the message says which settings to lower."""


class LostProcessError(GenAffectError, RuntimeError):
    """Another process of the job is gone, or cannot be reached."""


class UnfamiliarIdentityWarning(UserWarning):
    """An image that gives the identity lies far outside of what the model was trained on; the message names it."""


EXIT_STATUS: dict[type[GenAffectError], int] = {
    ConfigError: WRONG_ARGUMENT,
    ExpressionError: WRONG_ARGUMENT,
    TopologyError: WRONG_ARGUMENT,
    DataError: FAILED,
    WeightsError: FAILED,
    CheckpointError: FAILED,
    TrainingError: FAILED,
    SamplingError: FAILED,
    OutputError: FAILED,
    InUseError: FAILED,
    MemoryLimitError: FAILED,
    LostProcessError: LOST,
}
"""The exit status of a command that ends with such an error."""


def require(condition: bool, field: str, found: object, allowed: str) -> None:
    """Raises ConfigError `field=found: allowed` unless the condition holds."""
    if not condition:
        raise ConfigError(allowed, field=field, found=str(found))


def listed(problems: Sequence[str], most: int = 40, *, separator: str = "; ", characters: int = 900) -> str:
    """The first problems in one line, and how many more there are: a wrong file can have thousands.

    Args:
        problems: at least one is shown, each up to 300 characters long.
        most: largest number shown.
        separator: stands between them.
        characters: length from which no more are added.
    """
    shown = [shortened(problem, 300) for problem in problems[:most]]
    while len(shown) > 1 and len(separator.join(shown)) > characters:
        shown.pop()
    more = len(problems) - len(shown)
    return separator.join(shown) + (f"{separator}and {more} more" if more > 0 else "")


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text of at most about `most` characters; of a longer one the middle is left out, and how much is said."""
    if len(text) <= most:
        return text
    return f"{text[: most * 3 // 4]} ...({len(text) - most} characters left out)... {text[-(most // 4) :]}"


def install_command(extra: str) -> str:
    """The command that installs an optional dependency, in the project's folder."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"


def shown(value: object, most: int = 80) -> str:
    """A value of any type in one short line, for a message: arrays by type and shape, long texts cut."""
    if getattr(value, "ndim", 0) and hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} array of shape {value.shape}"
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
