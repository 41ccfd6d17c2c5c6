"""Which parameters are trained: patterns over the names of a network's parameters."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TypeVar

from genaffect_jax.config import TrainConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.parameter_names import ADAPTERS

Network = TypeVar("Network", bound=Functional)

FROZEN = "!"
"""In front of a pattern: parameters that match are frozen."""
PRESETS: dict[str, tuple[str, ...]] = {
    "everything": ("*",),
    # The parameters that Gen-AFFECT adds to the base model: condition projectors with their null tokens, and the
    # identity and expression branches of every block.
    "adapters": (*ADAPTERS, "!*"),
}
_NAMED = 8


def freeze(network: Network, config: TrainConfig) -> Network:
    """The network with all parameters frozen that `config.trainable` does not choose.

    An entry of `trainable` is a name in `PRESETS` or a pattern (`fnmatch`: `*` also matches dots); a `!` in front of a
    pattern freezes matching parameters. The first pattern that matches a parameter decides. Parameters that are never
    trained (position tables, kernels with a low-rank addition) take no part; factors of low-rank additions are always
    trained.

    Raises:
        ConfigError: a pattern matches nothing that earlier patterns left, no pattern covers a parameter, or no
            parameter is trained.
    """
    rules = [pattern for entry in config.trainable for pattern in PRESETS.get(entry, (entry,))]
    undecided = sorted(network.trainable - network.lora_params)
    chosen = set(network.lora_params)
    for rule in rules:
        pattern = rule.removeprefix(FROZEN)
        matching = {name for name in undecided if fnmatchcase(name, pattern)}
        if not matching:
            earlier = any(fnmatchcase(name, pattern) for name in network.trainable - network.lora_params)
            reason = "earlier patterns match all of its parameters" if earlier else "it matches no parameter"
            raise ConfigError(f"train.trainable: {rule!r} has no effect: {reason}{_like(network, undecided)}")
        if not rule.startswith(FROZEN):
            chosen |= matching
        undecided = [name for name in undecided if name not in matching]
    if undecided:
        names = ", ".join(undecided[:_NAMED]) + (", ..." if len(undecided) > _NAMED else "")
        raise ConfigError(
            f"train.trainable: no pattern covers {len(undecided)} parameters ({names}); "
            f"'{FROZEN}*' at the end freezes them, '*' trains them"
        )
    if not chosen:
        raise ConfigError(f"train.trainable={config.trainable}: no parameter is trained")
    return network.training(chosen)


def _like(network: Functional, undecided: list[str]) -> str:
    return f" (presets are {', '.join(PRESETS)}; names are like {(undecided or sorted(network.trainable))[0]})"


def describe(network: Functional) -> str:
    """The number of parameters and of trained ones, in words."""
    if network.trainable_size == network.size:
        return f"{network.size / 1e6:.2f} M parameters, all trained,"
    return f"{network.trainable_size / 1e6:.2f} M of {network.size / 1e6:.2f} M parameters trained,"
