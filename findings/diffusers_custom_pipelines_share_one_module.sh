#!/usr/bin/env bash
# diffusers 0.42.1: custom pipelines of two local folders share their modules; each mixes in code of the other.
#
# `from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)` copies `pipeline.py` and the modules that it
# imports into one folder of the modules cache, the same for all local folders. One would expect two folders to be two
# pieces of code. Instead a second folder is executed in the module of the first, and a helper module that was imported
# once is not imported again. So the second pipeline runs the first one's helper, and the first pipeline, already made,
# sees the second one's global names. Nothing says so. Within one process, two versions of an exported model cannot be
# compared this way unless their files have different names.
# Output seen (each pipeline returns a name from its own file and one from its helper):
#   first: ('first', 'first')
#   second: ('second', 'first')
#   first again: ('second', 'first')
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  diffusers==0.42.1 torch==2.13.0 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
"$folder/venv/bin/python" - "$folder" 2>"$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import json
import pathlib
import sys

import diffusers

PIPELINE = """
from diffusers import DiffusionPipeline

from .helper import HELPER

OWN = {name!r}


class Demo(DiffusionPipeline):
    def __init__(self):
        super().__init__()

    def __call__(self):
        return OWN, HELPER
"""

assert diffusers.__version__ == "0.42.1"
index = json.dumps({"_class_name": ["pipeline", "Demo"], "_diffusers_version": "0.42.1"})


def load(name):
    folder = pathlib.Path(sys.argv[1]) / name
    folder.mkdir()
    (folder / "model_index.json").write_text(index)
    (folder / "pipeline.py").write_text(PIPELINE.format(name=name))
    (folder / "helper.py").write_text(f"HELPER = {name!r}\n")
    return diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)


first = load("first")
print(f"first: {first()}")
assert first() == ("first", "first")
second = load("second")
print(f"second: {second()}")
print(f"first again: {first()}")
assert second() == ("second", "first"), "a second folder now runs its own helper"
assert first() == ("second", "first"), "a second folder no longer changes the first pipeline"
PY
