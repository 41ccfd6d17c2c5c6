"""Several processes that train together: how they find each other, and what they must do in step.

One process of a job of its own takes none of these paths: every function here returns at once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from genaffect_jax.config.distributed import DistributedConfig
from genaffect_jax.errors import ConfigError, LostProcessError

Tree = TypeVar("Tree")

# The process that waits for others ends by the heartbeat if one of them dies; until then it may wait for long.
_PATIENCE = 7 * 24 * 3600
# The supervisor's timeout comes first: JAX's own ends the process with a page of addresses.
_LATER = 60
# How the libraries that move arrays between processes, and JAX's coordination service, name what failed.
_UNREACHABLE = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination service")
CONTINUE = "No checkpoint is touched: start all processes again, and they continue from the last one"
_barriers = itertools.count()


def cluster_of(config: DistributedConfig, environment: Mapping[str, str] = os.environ) -> str | None:
    """The cluster system that says who takes part, by JAX's name; None if none does.

    Args:
        config: what was asked for.
        environment: variables of this process.
    """
    if config.coordinator_address is not None or config.cluster == "none":
        return None
    if config.cluster != "auto":
        return config.cluster

    def number(name: str) -> int:
        return int(environment[name]) if environment.get(name, "").isdecimal() else 1

    # SLURM sets the number of tasks in batch scripts too, but the nodes of the step only for processes of srun.
    if slurm_tasks(environment) > 1 and {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys():
        return "slurm"
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return "ompi"
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in workers or (workers and number("MEGASCALE_NUM_SLICES") > 1):
        return "gketpu"
    return None


def slurm_tasks(environment: Mapping[str, str] = os.environ) -> int:
    """Tasks of SLURM's step, each of which is one process; of the job where no step is named.

    The shell that `salloc` opens on a node of the job (`use_interactive_step`) is a step of one task, but has the
    job's SLURM_NTASKS, as has a step of `srun --preserve-env`.
    """
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return 1


def are_several(config: DistributedConfig, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is to join others."""
    return (config.num_processes or 1) > 1 or cluster_of(config, environment) is not None


def join(config: DistributedConfig) -> None:
    """Joins the other processes; returns when all are there and have exchanged something. Comes before any use of JAX.

    Raises:
        ConfigError: the cluster that was named is not there, or says too little.
    """
    cluster = cluster_of(config)
    try:
        jax.distributed.initialize(
            config.coordinator_address,
            slurm_tasks() if cluster == "slurm" else config.num_processes,  # JAX itself reads the job's number
            config.process_id,
            cluster_detection_method=cluster or "deactivate",
            initialization_timeout=config.join_timeout + _LATER,
            heartbeat_timeout_seconds=config.heartbeat_timeout,
        )
    except (ValueError, KeyError) as e:
        raise ConfigError(f"distributed.cluster={config.cluster}: {cluster} does not say who takes part ({e})") from e
    # Now rather than in the middle of the start: a process that can be reached, but not for what devices exchange.
    multihost_utils.sync_global_devices("joined")


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Turns what JAX raises where another process does not answer into LostProcessError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        lost = lost_process_behind(e)
        if lost is None:
            raise
        raise lost from e


def lost_process_behind(error: BaseException | None) -> LostProcessError | None:
    """What to raise if an error, or one of its causes, is JAX's way to say that another process does not answer."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in _UNREACHABLE):
            reason = str(error).splitlines()[0]
            return LostProcessError(f"another process of the job is lost or cannot be reached ({reason}). {CONTINUE}")
        error = error.__cause__
    return None


def is_first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return jax.process_index() == 0


def describe_process() -> str:
    """`process 1 of 2`, counted from 0."""
    return f"process {jax.process_index()} of {jax.process_count()}"


def barrier(name: str) -> None:
    """Returns when all processes have called it, the same number of times and with the same names."""
    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=f"genaffect {next(_barriers)} {name}", timeout_ms=_PATIENCE * 1000)


def others_agree(what: str, seconds: int = 60) -> bool:
    """Whether all other processes say the same within a time."""
    if jax.process_count() == 1:
        return True
    try:
        ocp.multihost.get_barrier_sync_fn()(key=f"genaffect agree {what}", timeout_ms=seconds * 1000)
    except jax.errors.JaxRuntimeError:
        return False
    return True


@contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Process 0 runs the block, which leaves files behind; then the others run it, and find them."""
    if not is_first():
        barrier(name)
    yield
    if is_first():
        barrier(name)


def gathered(tree: Tree) -> Tree:
    """A tree of arrays, each of them whole in this process. All processes must call it in step."""

    def whole(array: jax.Array) -> jax.Array:
        if array.is_fully_addressable:
            return array
        if array.is_fully_replicated:
            return array.addressable_data(0)
        return jnp.asarray(multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(whole, tree)
