#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: one damaged metrics file keeps a CheckpointManager from being made at all.
#
# With `best_fn` a manager keeps the best checkpoints by a metric, which it stores as a small JSON file inside each
# checkpoint. One would expect a file that was cut off (a full disk, a crash) to cost that checkpoint its rank. Instead
# the next manager reads all of these files when it is made and raises json.JSONDecodeError: the checkpoints that are
# whole cannot be listed or restored either, until the damaged folder is found and removed by hand.
# Output seen:
#   steps 1, 2, 3 saved; metrics of step 2 cut off
#   a new manager: JSONDecodeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import importlib.metadata
import json
import pathlib
import tempfile

import numpy as np
import orbax.checkpoint as ocp

assert importlib.metadata.version("orbax-checkpoint") == "0.12.8"
folder = pathlib.Path(tempfile.mkdtemp())


def manager():
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics["loss"], best_mode="min", enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder, options=options)


with manager() as first:
    for step in (1, 2, 3):
        first.save(step, args=ocp.args.StandardSave({"w": np.ones(2)}), metrics={"loss": float(step)})
metrics = folder / "2" / "metrics" / "metrics"
assert json.loads(metrics.read_text()) == {"loss": 2.0}
metrics.write_text('{"lo')
print("steps 1, 2, 3 saved; metrics of step 2 cut off")
try:
    manager()
except json.JSONDecodeError as error:
    print(f"a new manager: {type(error).__name__}")
else:
    raise SystemExit("a damaged metrics file no longer hides the other checkpoints")
PY
