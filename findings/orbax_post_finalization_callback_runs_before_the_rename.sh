#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: `AsyncOptions.post_finalization_callback` runs before the checkpoint gets its final name.
#
# By its name one would expect the checkpoint to be there when it is called: a good place to tell a job that the step can
# be read. The folder of the step does not exist yet; the files lie in one with a temporary name. What the callback
# writes beside them therefore appears together with the checkpoint, and what it announces is not there.
# Output seen:
#   in the callback: final folder exists False, entries of the parent ['step.orbax-checkpoint-tmp']
#   after waiting: final folder exists True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/out" 2>/dev/null <<'PY'
import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

assert importlib.metadata.version("orbax-checkpoint") == "0.12.8"
out, seen = Path(sys.argv[1]), []
out.mkdir()


def callback():
    seen.append(((out / "step").exists(), sorted(p.name for p in out.iterdir())))


options = ocp.options.AsyncOptions(post_finalization_callback=callback)
with ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), async_options=options) as checkpointer:
    checkpointer.save(out / "step", args=ocp.args.StandardSave({"x": np.zeros(3)}))
    checkpointer.wait_until_finished()
((there, entries),) = seen
print(f"in the callback: final folder exists {there}, entries of the parent {entries}")
print(f"after waiting: final folder exists {(out / 'step').exists()}")
assert not there, "the callback runs after the rename now"
assert (out / "step").exists()
PY
