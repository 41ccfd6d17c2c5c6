"""Memory of a training's state by what trains: `python benchmarks/training_memory.py --help`.

Counted from shapes: no array is made and nothing is compiled, so it runs anywhere. Activations are not counted.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import tyro

from genaffect_jax.cli import load_preset
from genaffect_jax.config import DenoiserRun, MeshConfig
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.lora import LoraNetwork
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state
from genaffect_jax.training.trainable import freeze

COLUMNS = ("trainable", "base", "factors", "average", "moments", "gradients", "merging", "all")


def main(config: Path = Path("configs/sd35_medium.py"), rank: int = 16) -> None:
    """Prints a table in GB (1e9 bytes).

    Args:
        config: preset of a denoiser.
        rank: rank of the low-rank additions.
    """
    run = load_preset(config, DenoiserRun)
    print(f"| {config.stem} | parameters that train | " + " | ".join(COLUMNS[1:]) + " |")
    print("|" + "---|" * (len(COLUMNS) + 1))
    for name, trainable, lora in (
        ("everything", "everything", 0),
        ("adapters", "adapters", 0),
        (f"adapters, LoRA {rank}", "adapters", rank),
    ):
        model = dataclasses.replace(run.model, lora=dataclasses.replace(run.model.lora, rank=lora))
        row = count(dataclasses.replace(run, model=model, train=dataclasses.replace(run.train, trainable=(trainable,))))
        print(
            f"| {name} | {row['trainable'] / 1e6:.1f} M | "
            + " | ".join(f"{row[c] / 1e9:.2f}" for c in COLUMNS[1:])
            + " |"
        )


def count(run: DenoiserRun) -> dict[str, int]:
    """Parameters that train, and bytes: the network's own arrays, its factors, their average, AdamW's moments,
    gradients, and what merging low-rank additions holds for a while (the sums and their gradients)."""
    network = freeze(build_networks(run.model)[0], run.train)
    state = abstract_state(network, make_optimizer(run.train), make_mesh(MeshConfig()))
    targets, added = (network.targets, network.lora_params) if isinstance(network, LoraNetwork) else ((), ())
    factors = size({name: state.parameters[name] for name in added})
    row = {
        "trainable": network.trainable_size,
        "base": size(state.parameters) + size(state.frozen_params) - factors,
        "factors": factors,
        "average": size(state.ema),
        "moments": size(state.optimizer),
        "gradients": size(state.parameters),
        "merging": 2 * size({name: network.shapes[name] for name in targets}),
    }
    return {**row, "all": sum(row.values()) - row["trainable"]}


def size(tree: Any) -> int:
    """Bytes of the arrays of a tree of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    tyro.cli(main)
