"""Processes of one training, on one host or several, and how they connect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genaffect_jax.config.numbers import require_usable_numbers
from genaffect_jax.errors import require

Cluster = Literal["auto", "none", "slurm", "ompi", "mpi4py", "k8s", "gketpu", "gcetpu"]


@dataclass(frozen=True)
class DistributedConfig:
    """Processes that train together. The settings do not change the training itself."""

    cluster: Cluster = "auto"
    """Source of the number of processes and of this one's number. `auto`: the environment of SLURM, Open MPI or a GKE
    TPU slice, if it names more than one process; a name: that system (`gcetpu`, the TPU VMs of a pod, and `k8s` ask a
    server, so `auto` does not try them); `none`: this process trains alone."""
    coordinator_address: str | None = None
    """HOST:PORT of process 0, in place of a cluster; needs `num_processes` and `process_id`."""
    num_processes: int | None = None
    """Number of processes of the job."""
    process_id: int | None = None
    """Number of this process, from 0."""
    join_timeout: int = 300
    """Seconds to wait at the start until all processes have connected."""
    heartbeat_timeout: int = 100
    """Seconds without a heartbeat after which a process counts as lost and the others end."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "distributed.", 10**6)
        given = (self.coordinator_address, self.num_processes, self.process_id)
        names = ("coordinator_address", "num_processes", "process_id")
        missing = [n for n, v in zip(names, given, strict=True) if v is None]
        require(
            len(missing) in (0, 3),
            f"distributed.{missing[0] if missing else ''}",
            None,
            "coordinator_address, num_processes and process_id are given together or not at all",
        )
        if self.coordinator_address is not None and self.num_processes is not None and self.process_id is not None:
            host, _, port = self.coordinator_address.rpartition(":")
            require(
                bool(host) and port.isdecimal(),
                "distributed.coordinator_address",
                self.coordinator_address,
                "must be HOST:PORT",
            )
            require(self.num_processes >= 1, "distributed.num_processes", self.num_processes, "must be at least 1")
            require(
                0 <= self.process_id < self.num_processes,
                "distributed.process_id",
                self.process_id,
                f"must lie in 0..{self.num_processes - 1}",
            )
            require(
                self.cluster in ("auto", "none"),
                "distributed.cluster",
                self.cluster,
                "cannot be combined with coordinator_address, num_processes and process_id",
            )
        for name in ("join_timeout", "heartbeat_timeout"):
            require(getattr(self, name) >= 1, f"distributed.{name}", getattr(self, name), "must be at least 1")
