"""Command lines: preset files with dotted overrides, and what every command ends with.

Every command is `run(work)`: an error of this package is one line on stderr and its exit status in
`errors.EXIT_STATUS`; anything else is a defect of this program and keeps its traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import io
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TextIO, TypeVar, get_type_hints

import jax
import tyro
from rich.console import Console

from genaffect_jax.checkpoints.background_errors import told_once
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DistributedConfig
from genaffect_jax.config.local_paths import local_path, local_paths, options_left_empty
from genaffect_jax.errors import (
    COMPLETE,
    EXIT_STATUS,
    FAILED,
    INTERRUPTED,
    ConfigError,
    GenAffectError,
    UnfamiliarIdentityWarning,
)
from genaffect_jax.io.output import PlainConsole, expendable_output, one_line, warned_in_one_line
from genaffect_jax.parallel.distributed import are_several, describe_process, is_first, join, lost_processes_named
from genaffect_jax.parallel.supervisor import supervise

Arguments = TypeVar("Arguments")
Preset = TypeVar("Preset")

_program: str | None = None
# Titles of tyro's panels about the value of an option, and what its colours look like.
_ABOUT_VALUES = ("Value error", "Invalid choice", "Missing argument")
_COLOUR = re.compile("\x1b\\[[0-9;]*m")

# No defects of this program: disk full, quota or limit of file sizes reached, read-only, not allowed, disk broken,
# folders or circles of links where a file should be, files where a folder should be, and names that are too long.
_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
)


def load_preset(path: Path, *kinds: type[Preset]) -> Preset:
    """Runs a preset file and returns what its `config()` makes.

    Args:
        path: a Python file that defines `config()`.
        kinds: the configuration classes that the command takes.

    Raises:
        ConfigError: the file is missing, has no `config`, or makes another kind of configuration.
    """
    names = " or ".join(kind.__name__ for kind in kinds)
    if not os.path.isfile(path):  # also false for a name that no file can have
        files = path.parent.glob("*.py") if os.path.isdir(path.parent) else ()
        nearby = ", ".join(sorted(p.name for p in files)) or "nothing"
        raise ConfigError(f"no such preset ({path.parent} has {nearby})", field="config", found=path)
    preset = runpy.run_path(str(path)).get("config")
    if not callable(preset):
        raise ConfigError(f"a preset defines config(), returning a {names}", field="config", found=path)
    run = preset()
    if not isinstance(run, kinds):
        raise ConfigError(
            f"config() returned {type(run).__name__}, this command needs {names}", field="config", found=path
        )
    return run


@expendable_output()  # the help, too, may have no reader
def parse(arguments: type[Arguments], argv: Sequence[str] | None) -> Arguments:
    """Parses a command line without preset.

    Args:
        arguments: frozen dataclass of the command.
        argv: command line without the program's name; `sys.argv` when left out.

    A wrong option or value ends the program with exit status 2 and a message on stderr, before any work.
    """
    with _refusals_shown(argv, arguments) as words:
        return local_paths(
            tyro.cli(arguments, prog=program_name(), args=words, use_underscores=True), options_left_empty(words)
        )


@expendable_output()
def parse_for_model(arguments: Any, argv: Sequence[str] | None) -> Any:
    """Parses `--model DIR` first and everything else with the defaults of that model.

    Args:
        arguments: frozen dataclass of the command, with the fields of SamplingDefaults and `model: Path`, which has a
            default.
        argv: command line without the program's name; `sys.argv` when left out.

    A wrong option or value ends the program with exit status 2 and a message on stderr, before any work.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--model", type=Path, nargs="?")
    with _refusals_shown(argv, arguments) as words:
        model = first.parse_known_args(words)[0].model
        model = arguments.model if model is None else local_path("model", model)
        known = RunDir.of_model(model).sampling_defaults()
        return local_paths(
            tyro.cli(
                arguments,
                prog=program_name(),
                default=arguments(**_required(arguments), **dataclasses.asdict(known)),
                args=words,
                use_underscores=True,
            ),
            options_left_empty(words),
        )


@expendable_output()
def parse_with_preset(
    arguments: Any,
    kinds: Sequence[type],
    argv: Sequence[str] | None,
    default_preset: Path,
    adapt: Callable[[Any], Any] | None = None,
) -> Any:
    """Parses `--config PRESET` first and everything else as overrides of that preset.

    Args:
        arguments: frozen dataclass of the command, generic in the class of its field `run`. It has a field
            `config: Path`; every other field without a default must be given.
        kinds: the classes that `run` may have; the preset decides.
        argv: command line without the program's name; `sys.argv` when left out.
        default_preset: used when no `--config` is given.
        adapt: changes the preset before it is overridden.

    A wrong option or value ends the program with exit status 2 and a message on stderr, before any work.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, default=default_preset)
    with _refusals_shown(argv, *kinds) as words:
        preset: Any = load_preset(local_path("config", first.parse_known_args(words)[0].config), *kinds)
        preset = preset if adapt is None else adapt(preset)
    with _refusals_shown(argv, type(preset)) as words:
        found = tyro.cli(
            arguments[type(preset)],
            prog=program_name(),
            default=arguments(**{**_required(arguments), "config": default_preset, "run": preset}),
            args=words,
            config=(tyro.conf.FlagConversionOff,),
            use_underscores=True,
        )
        return local_paths(_derived_anew(found), options_left_empty(words))


def _derived_anew(config: Any) -> Any:
    """The configuration with the fields that others decide (`init=False`) as these decide them: tyro leaves those of
    the preset."""
    nested = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
    built = {name: _derived_anew(value) for name, value in nested.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(config, **built)


def _required(arguments: Any) -> dict[str, Any]:
    """The fields without a default, to be given on the command line."""
    fields = dataclasses.fields(arguments)
    return {f.name: tyro.MISSING for f in fields if f.default is f.default_factory is dataclasses.MISSING}


def run_as(name: str) -> None:
    """Says by what name this process was started, for usage texts."""
    global _program
    _program = name


def program_name() -> str | None:
    """`python -m genaffect_jax.train`: run with -m, the program's own name would be a path. Or see `run_as`."""
    if _program is not None:
        return _program
    module = sys.modules["__main__"].__spec__
    return None if module is None else f"python -m {module.name.removesuffix('.__main__')}"


def run(work: Callable[[Console], bool], distributed: DistributedConfig | None = None) -> int:
    """Runs `work(console)` and returns the exit status.

    An error of this package, and a full or read-only disk, is one message on stderr; anything else is a defect and
    keeps its traceback. Output that cannot be written is dropped (`io.output`).

    Args:
        work: the command; it returns True if it is complete and may print to the console, which is stderr.
        distributed: the processes that run the command together, if there are several; each calls this function. Only
            process 0 gets a console that prints; every process reports its own errors, with its number.
    """
    with expendable_output():
        if distributed is None or not are_several(distributed):
            return _status(lambda: work(PlainConsole()))
        return supervise(distributed, lambda joined: _run_with_others(work, distributed, joined))


@expendable_output()
def run_subcommand(commands: Mapping[str, Any], argv: Sequence[str] | None) -> int:
    """Runs the command that the command line names; returns the exit status.

    Args:
        commands: names and modules, each with `Arguments` and `run(arguments, console)`.
        argv: command line without the program's name; `sys.argv` when left out.
    """
    with _refusals_shown(argv, *(module.Arguments for module in commands.values())) as words:
        arguments: Any = local_paths(
            tyro.extras.subcommand_cli_from_dict(
                {name: module.Arguments for name, module in commands.items()},
                prog=program_name(),
                args=words,
                use_underscores=True,
            ),
            options_left_empty(words),
        )
    command = next(module for module in commands.values() if isinstance(arguments, module.Arguments))
    return run(lambda console: command.run(arguments, console))


@contextmanager
def _refusals_shown(argv: Sequence[str] | None, *kinds: type) -> Iterator[list[str]]:
    """Ends the program with one line and exit status 2 if a ConfigError is raised in the block.

    tyro turns an error of a nested configuration into a panel of its own and a SystemExit; the panel is dropped and the
    error shown instead. Its panels about values become one line too. Everything else that tyro prints stays: what is
    missing, and suggestions for misspelled options.

    Args:
        argv: command line without the program's name; `sys.argv` when left out.
        kinds: the configuration classes whose fields are options.

    Yields:
        The words of the command line, all of them UTF-8.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    held, refused = _HeldOutput(sys.stderr, words), None
    try:
        with redirect_stderr(held):
            _require_texts(words)
            yield words
    except (ConfigError, SystemExit) as e:
        refused = _config_error_behind(e)
        if refused is None:
            raise
    finally:
        if refused is None:
            sys.stderr.write(held.shown())
    if refused is not None:
        print(f"error: {one_line(_as_option(refused, kinds).on_command_line)}", file=sys.stderr)
        sys.exit(EXIT_STATUS[type(refused)])


def _require_texts(words: Sequence[str]) -> None:
    # What a command is given ends up in JSON, in weight files' headers and in libraries that take UTF-8 only.
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as e:
            raise ConfigError(f"{one_line(word)}: not UTF-8; rename the file or folder") from e
        if "\0" in word:  # never from a shell
            raise ConfigError(f"{one_line(word)}: holds a NUL, which no file name and no text can")


class _HeldOutput(io.StringIO):
    """Keeps what is written; is a terminal if `stream` is one, so that colours stay.

    Escape sequences of the command line itself, which messages repeat, are not to reach a terminal. If there are any,
    nothing is coloured, so that every one is known to be theirs.
    """

    def __init__(self, stream: TextIO, words: Sequence[str]) -> None:
        super().__init__()
        self._plain = any(one_line(word) != word for word in words) or not stream.isatty()
        self.isatty = lambda: not self._plain  # type: ignore[method-assign]

    def shown(self) -> str:
        """What was written, as it may be shown."""
        text = self.getvalue()
        about_value = _in_panel_about_value(text)
        if about_value is not None:
            return f"error: {one_line(about_value)}\n"
        return "\n".join(map(one_line, text.split("\n"))) if self._plain else text


def _in_panel_about_value(text: str) -> str | None:
    """The reason in a panel of tyro's about the value of an option; None if the text is no such panel."""
    title, *lines = [_COLOUR.sub("", line).strip("│|╭╮╰╯ ") for line in text.split("\n")] or [""]
    if title.strip("─- ") not in _ABOUT_VALUES:
        return None
    reason: list[str] = []
    for line in lines:
        if reason and not line.strip("─-"):
            break  # a rule, behind which the help of the option stands, or the paragraph's end
        reason.append(line)
    return " ".join(reason).strip("─- ").removeprefix("Error parsing ")


def _config_error_behind(error: BaseException) -> ConfigError | None:
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, ConfigError):
        behind = behind.__context__
    return behind


def _as_option(error: ConfigError, kinds: Sequence[type]) -> ConfigError:
    """The error with its field's whole path: `model.mmdit.num_layers` for `mmdit.num_layers`."""
    paths = {path for kind in kinds for path in _field_paths(kind) if f".{path}".endswith(f".{error.field}")}
    return error.renamed(paths.pop()) if error.field is not None and len(paths) == 1 else error


def _field_paths(kind: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _field_paths(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _run_with_others(
    work: Callable[[Console], bool], distributed: DistributedConfig, joined: Callable[[str], None]
) -> int:
    together = False

    def run() -> bool:
        nonlocal together
        join(distributed)
        joined(describe_process())
        with lost_processes_named():
            complete = work(PlainConsole(quiet=not is_first()))
            jax.distributed.shutdown()  # waits for the others
        together = True
        return complete

    try:
        status = _status(run)
    except Exception:
        traceback.print_exc()
        status = FAILED
    if not together:
        # Python's way out would wait for the others, and they for this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _status(work: Callable[[], bool]) -> int:
    def tell(error: str) -> None:
        where = f"{describe_process()}: " if jax.distributed.is_initialized() else ""
        print(f"error: {one_line(f'{where}{error}')}", file=sys.stderr)

    try:
        with told_once(), warned_in_one_line(UnfamiliarIdentityWarning):
            return COMPLETE if work() else INTERRUPTED
    except GenAffectError as e:
        tell(e.on_command_line)
        return EXIT_STATUS[type(e)]
    except OSError as e:
        if e.errno not in _MACHINE:
            raise
        tell(f"{e.filename or 'a file'}: {e.strerror}; the checkpoints are as they were")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
