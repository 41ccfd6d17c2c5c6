#!/usr/bin/env bash
# diffusers 0.42.1: of a local custom pipeline, only the modules that `pipeline.py` itself imports are copied.
#
# The code for repositories of the hub follows the relative imports of imported modules too, so one would expect the
# same of a local folder. There a module that only a helper imports is not copied into the modules cache, and loading
# fails. It does not fail once any other local folder had a module of that name copied, in an earlier process too: then
# that folder's module is imported, without a word. `pipeline.py` has to import every module of its folder itself.
# Output seen (pipeline.py of folder b imports .helper, which imports .values; pipeline.py of folder a imports both):
#   b alone: No module named 'diffusers_modules.local.values'
#   a: a
#   b in a new process, after a: a
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  diffusers==0.42.1 torch==2.13.0 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
"$folder/venv/bin/python" - "$folder" 2>"$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import importlib.metadata
import json
import pathlib
import subprocess
import sys

PIPELINE = """
from diffusers import DiffusionPipeline

{imports}


class Demo(DiffusionPipeline):
    def __init__(self):
        super().__init__()

    def __call__(self):
        return VALUE
"""
LOAD = """
import sys
from diffusers import DiffusionPipeline
try:
    print(DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[1], trust_remote_code=True)())
except ModuleNotFoundError as error:
    print(error)
"""

assert importlib.metadata.version("diffusers") == "0.42.1"
HELPER = "from .helper import VALUE"
for name, imports in (("a", f"{HELPER}\nfrom .values import VALUE"), ("b", HELPER)):
    folder = pathlib.Path(sys.argv[1]) / name
    folder.mkdir()
    index = {"_class_name": ["pipeline", "Demo"], "_diffusers_version": "0.42.1"}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "pipeline.py").write_text(PIPELINE.format(imports=imports))
    (folder / "helper.py").write_text("from .values import VALUE\n")
    (folder / "values.py").write_text(f"VALUE = {name!r}\n")


def load(name):
    command = [sys.executable, "-c", LOAD, str(pathlib.Path(sys.argv[1]) / name)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


alone = load("b")
print(f"b alone: {alone}")
assert alone == "No module named 'diffusers_modules.local.values'", "indirect imports are copied now"
first = load("a")
print(f"a: {first}")
assert first == "a"
after = load("b")
print(f"b in a new process, after a: {after}")
assert after == "a", "modules of another folder are no longer used"
PY
