"""How a configuration refuses a value."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration value that is not allowed; the message names the field, the value and what is allowed."""


def require(condition: bool, name: str, found: object, allowed: str) -> None:
    """Raises ConfigError `name=found: allowed` unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name}={found}: {allowed}")


def install_command(extra: str) -> str:
    """The command that installs an optional dependency, in the project's folder."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"
