"""A process beside the one that trains, which says in plain words how that one ended.

If another process of the job is lost, JAX's runtime aborts this one: whatever Python does at the time, it ends within
the heartbeat timeout, but without a word that helps. Nothing in the process itself can be relied on to speak then.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable

from genaffect_jax.config.distributed import DistributedConfig
from genaffect_jax.errors import FAILED, INTERRUPTED, LOST
from genaffect_jax.io.output import one_line
from genaffect_jax.parallel.distributed import CONTINUE, cluster_of


def supervise(config: DistributedConfig, work: Callable[[Callable[[str], None]], int]) -> int:
    """Runs `work` in a child process and waits for it; returns the exit status.

    SIGINT, SIGTERM and, unless it is ignored, SIGHUP are passed on. The child does not outlive this process. Call it
    before JAX is used: it forks.

    Args:
        config: for the timeouts and the messages.
        work: gets a function to call with this process's name once all processes have joined; returns the exit
            status. It runs in the child, which then ends by SystemExit.
    """
    news, tell = os.pipe()
    watched, lifeline = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(news)
        os.close(lifeline)
        os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which passes it on once
        _end_with(watched)

        def joined(name: str) -> None:
            os.write(tell, name.encode())
            os.close(tell)

        sys.exit(work(joined))
    os.close(tell)
    os.close(watched)
    name: str | None = None
    passed_on: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        passed_on.append(number)
        # A child that waits for others inside JAX hears nothing, and has nothing to finish.
        os.kill(child, number if name else signal.SIGKILL)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        name = _name_when_joined(news, config.join_timeout)
        if name is None:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(news)
        os.close(lifeline)
    code = os.waitstatus_to_exitcode(status)
    if name is None and not passed_on:
        print(f"error: {one_line(_missing(config))}", file=sys.stderr)
        return LOST
    if code >= 0:
        return code
    if -code in passed_on or (passed_on and not name):
        return INTERRUPTED
    print(f"error: {one_line(name or _place(config))} {_killed(-code, bool(name))}", file=sys.stderr)
    return LOST


def _name_when_joined(news: int, seconds: float) -> str | None:
    """What the child says when all have joined; empty if it ended before, None if the time is up."""
    ready, _, _ = select.select([news], [], [], seconds)
    return os.read(news, 100).decode() if ready else None


def _end_with(pipe: int) -> None:
    def wait() -> None:
        os.read(pipe, 1)  # nobody writes: it returns when the other end closes
        os._exit(FAILED)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


def _place(config: DistributedConfig) -> str:
    if config.coordinator_address is None:
        return f"this process (distributed.cluster {config.cluster})"
    return f"process {config.process_id} of {config.num_processes}"


def _missing(config: DistributedConfig) -> str:
    where = f"at {config.coordinator_address}" if config.coordinator_address else "where the cluster's variables say"
    return (
        f"{_place(config)}: waited {config.join_timeout} s {where}, and not all processes of the job have come "
        "(--distributed.join_timeout). Look at the logs of the others: every one must have started, with the same "
        "coordinator and number of processes and an index of its own; process 0 must run on the coordinator's host, "
        f"and the others must be able to reach its port and each other{_alone(config)}"
    )


def _alone(config: DistributedConfig) -> str:
    if cluster_of(config) is None:
        return ""
    return "; if this process is to train alone, start it with --distributed.cluster none"


def _killed(number: int, joined: bool) -> str:
    if number == signal.SIGABRT and joined:
        return (
            "was ended by JAX because another process of the job is lost or cannot be reached (the lines above may "
            f"say which). {CONTINUE}"
        )
    cause = ", as the system does when memory runs out" if number == signal.SIGKILL else ""
    return f"was ended by signal {number} ({signal.Signals(number).name}{cause}). {CONTINUE}"
