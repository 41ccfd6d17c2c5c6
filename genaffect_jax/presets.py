"""Command-line parsing shared by the training commands: a preset file, then dotted overrides."""

from __future__ import annotations

import argparse
import dataclasses
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from genaffect_jax.config import ConfigError

Arguments = TypeVar("Arguments")
Run = TypeVar("Run")


def load_preset(path: Path, kind: type[Run]) -> Run:
    """Runs a preset file and returns what its `config()` makes.

    Args:
        path: a Python file that defines `config()`.
        kind: the configuration class that the command needs.

    Raises:
        ConfigError: the file is missing, has no `config`, or makes another kind of configuration.
    """
    if not path.is_file():
        nearby = ", ".join(sorted(p.name for p in path.parent.glob("*.py"))) or "nothing"
        raise ConfigError(f"--config {path}: no such preset ({path.parent} holds {nearby})")
    preset = runpy.run_path(str(path)).get("config")
    if not callable(preset):
        raise ConfigError(f"--config {path}: a preset defines config(), returning a {kind.__name__}")
    run = preset()
    if not isinstance(run, kind):
        raise ConfigError(
            f"--config {path}: config() returned {type(run).__name__}, this command needs {kind.__name__}"
        )
    return run


def parse(
    arguments: type[Arguments], run: type[Run], argv: Sequence[str] | None, default_preset: Path,
    adapt: Callable[[Run], Run] | None = None,
) -> Arguments:  # fmt: skip
    """Parses `--config PRESET` first and everything else as overrides of that preset.

    Args:
        arguments: frozen dataclass of the command with the fields `config: Path` and `run`; what else has no default
            must be given.
        run: the class of its field `run`.
        argv: command line without the program's name; `sys.argv` when left out.
        default_preset: used when no `--config` is given.
        adapt: changes the preset before it is overridden.

    A wrong option or value ends the program with exit status 2 and a message on stderr, before any work.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, default=default_preset)
    try:
        preset = load_preset(first.parse_known_args(argv)[0].config, run)
        preset = preset if adapt is None else adapt(preset)
    except ConfigError as e:
        sys.exit(_usage(str(e)))
    fields: Any = dataclasses.fields(arguments)  # type: ignore[arg-type]
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    given = dict.fromkeys(required, tyro.MISSING)
    default: Any = arguments(**{**given, "config": default_preset, "run": preset})
    # Run with -m, the program's own name would be a path.
    module = sys.modules["__main__"].__spec__
    return tyro.cli(
        arguments, prog=f"python -m {module.name}" if module is not None else None, default=default, args=argv,
        config=(tyro.conf.FlagConversionOff,), use_underscores=True,
    )  # fmt: skip


def _usage(message: str) -> int:
    print(message, file=sys.stderr)
    return 2
