"""What trains: patterns over the names of a network's parameters."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TypeVar

from genaffect_jax.config import TrainConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.parameter_names import ADAPTERS

Network = TypeVar("Network", bound=Functional)

FIXED = "!"
"""In front of a pattern: what matches does not train."""
PRESETS: dict[str, tuple[str, ...]] = {
    "everything": ("*",),
    # What Gen-AFFECT adds to the base model: projectors with their null tokens, and the branches of every block.
    "adapters": (*ADAPTERS, "!*"),
}
_NAMED = 8


def freeze(network: Network, config: TrainConfig) -> Network:
    """The network of which only what `config.trainable` chooses trains.

    An entry of `trainable` is a name in `PRESETS` or a pattern (`fnmatch`: `*` also matches dots), and the first
    pattern that matches a parameter decides it. What never trains (position tables, kernels with a low-rank addition)
    is not looked at; factors of low-rank additions always train.

    Raises:
        ConfigError: a pattern decides no parameter, no pattern decides a parameter, or nothing trains.
    """
    rules = [pattern for entry in config.trainable for pattern in PRESETS.get(entry, (entry,))]
    undecided = sorted(network.trainable - network.lora_params)
    chosen = set(network.lora_params)
    for rule in rules:
        pattern = rule.removeprefix(FIXED)
        matching = {name for name in undecided if fnmatchcase(name, pattern)}
        if not matching:
            earlier = any(fnmatchcase(name, pattern) for name in network.trainable - network.lora_params)
            reason = "the patterns before it decide all that it matches" if earlier else "it matches no parameter"
            raise ConfigError(f"train.trainable: {rule!r} decides nothing: {reason}{_like(network, undecided)}")
        if not rule.startswith(FIXED):
            chosen |= matching
        undecided = [name for name in undecided if name not in matching]
    if undecided:
        names = ", ".join(undecided[:_NAMED]) + (", ..." if len(undecided) > _NAMED else "")
        raise ConfigError(
            f"train.trainable: no pattern decides {len(undecided)} parameters ({names}); "
            f"'{FIXED}*' at the end keeps them fixed, '*' trains them"
        )
    if not chosen:
        raise ConfigError(f"train.trainable={config.trainable}: nothing trains")
    return network.training(chosen)


def _like(network: Functional, undecided: list[str]) -> str:
    return f" (presets are {', '.join(PRESETS)}; names are like {(undecided or sorted(network.trainable))[0]})"


def describe(network: Functional) -> str:
    """How many parameters there are and how many of them train, in words."""
    if network.trainable_size == network.size:
        return f"{network.size / 1e6:.2f} M parameters, all train,"
    return f"{network.trainable_size / 1e6:.2f} M of {network.size / 1e6:.2f} M parameters train,"
