"""Compares two checkouts of this project bit by bit: `python benchmarks/compare_checkouts.py BEFORE AFTER --out DIR`.

In each checkout the real commands train `avatar_tiny` for a few steps on a few avatars, then sample a set, a morph, a
consistent set from two references with a kept anchor KV cache, and a set with a block cache. Losses, gradient norms and
pixels are compared exactly, on the CPU, where they promise to be equal. Meant for changes that move or rename code:
exit status 0 if everything is equal, 1 if something differs. Both checkouts use the Python that runs this script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

COMPARED = ("loss", "gradient_norm", "eval/loss")
SETS = {
    "set": ["--identity", "seed:1000007", "--expressions", "joy, sadness, anger:0.6, AU12L=0.7, 0.5*joy+0.5*fear"],
    "morph": ["--identity", "seed:1000007", "--morph", "joy", "sadness", "--frames", "5"],
    "consistent": [
        *("--identity", "seed:1000007", "seed:1000008", "--expressions", "joy, sadness, anger, fear, pride, love"),
        *("--consistency", "0.5", "--anchors", "3", "--chunk", "2", "--kv_cache", "always"),
    ],
    "block_cache": [
        *("--identity", "seed:1000009", "--expressions", "joy, sadness, anger"),
        *("--solver", "heun", "--block_cache_interval", "2"),
    ],
}


def main(before: Path, after: Path, /, out: Path, steps: int = 60, identities: int = 40) -> int:
    """Runs both checkouts and prints what is equal.

    Args:
        before: a checkout.
        after: another one.
        out: folder for the run folders and sets of both; must not exist.
        steps: steps of the training.
        identities: avatars that it trains on.
    """
    out.mkdir(parents=True)
    for name, root in (("before", before), ("after", after)):
        run(root.resolve(), out.resolve() / name, steps, identities)
    equal = [_same_metrics(out), *(_same_images(out, name) for name in SETS)]
    return 0 if all(equal) else 1


def run(root: Path, out: Path, steps: int, identities: int) -> None:
    """Trains and samples with the commands of one checkout."""
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(out / "compiled")

    def command(module: str, *options: str) -> None:
        subprocess.run(
            [sys.executable, "-m", f"genaffect_jax.{module}", *options], cwd=root, env=environment, check=True
        )

    command(
        "train",
        *("--config", "configs/avatar_tiny.py", "--workdir", str(out / "run"), "--data.identities", str(identities)),
        *("--data.workers", "0", "--train.steps", str(steps), "--train.checkpoint_every", str(steps)),
        *("--train.log_every", "1", "--train.sample_every", "0"),
    )
    for name, options in SETS.items():
        command("sample", "--model", str(out / "run"), *options, "--steps", "4", "--out", str(out / name))


def _same_metrics(out: Path) -> bool:
    found = [
        [
            {name: row[name] for name in COMPARED if name in row}
            for row in map(json.loads, (out / side / "run" / "metrics.jsonl").read_text().splitlines())
        ]
        for side in ("before", "after")
    ]
    equal = found[0] == found[1]
    print(f"training: {len(found[1])} rows of metrics, {'equal to the bit' if equal else 'DIFFERENT'}")
    return equal


def _same_images(out: Path, name: str) -> bool:
    files = [
        {p.name: np.asarray(Image.open(p)) for p in (out / side / name).glob("*.png")} for side in ("before", "after")
    ]
    if files[0].keys() != files[1].keys():
        print(f"{name}: other files: {sorted(files[0].keys() ^ files[1].keys())}")
        return False
    different = [file for file, image in files[0].items() if not np.array_equal(image, files[1][file])]
    print(f"{name}: {len(files[0])} images, {f'DIFFERENT: {different}' if different else 'equal to the bit'}")
    return not different


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
