"""How the processes of a training on several hosts find each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genaffect_jax.errors import require

Cluster = Literal["auto", "none", "slurm", "ompi", "mpi4py", "k8s", "gketpu", "gcetpu"]


@dataclass(frozen=True)
class DistributedConfig:
    """Processes that train together, on one host or several. It says nothing about what is trained."""

    cluster: Cluster = "auto"
    """Who says how many processes there are and which one this is. `auto`: the variables of SLURM, Open MPI or a GKE
    TPU slice, if they speak of more than one process; a name: that system (`gcetpu`, the TPU VMs of a pod, and `k8s`
    ask a server and are never tried unasked); `none`: this process trains alone."""
    coordinator_address: str | None = None
    """HOST:PORT of process 0, instead of a cluster; goes with `num_processes` and `process_id`."""
    num_processes: int | None = None
    """Number of processes of the whole job."""
    process_id: int | None = None
    """Number of this process, from 0."""
    join_timeout: int = 300
    """Seconds that a process waits at its start until all are there."""
    heartbeat_timeout: int = 100
    """Seconds without a sign of life after which a process counts as lost, and the others end."""

    def __post_init__(self) -> None:
        given = (self.coordinator_address, self.num_processes, self.process_id)
        missing = [
            n for n, v in zip(("coordinator_address", "num_processes", "process_id"), given, strict=True) if v is None
        ]
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
                "takes the place of coordinator_address, num_processes and process_id; give one or the other",
            )
        for name in ("join_timeout", "heartbeat_timeout"):
            require(getattr(self, name) >= 1, f"distributed.{name}", getattr(self, name), "must be at least 1")
