#!/usr/bin/env bash
# diffusers 0.42.1: `AutoModel` does not see a component's own code once the folder has a `model_index.json`.
#
# A component with code of its own names its class in the `auto_map` of its `config.json`, and
# `AutoModel.from_pretrained(folder, subfolder="part", trust_remote_code=True)` loads it. One would expect a
# `model_index.json` beside it, by which `DiffusionPipeline` loads the same folder, to change nothing. Instead AutoModel
# looks for the `auto_map` in `model_index.json` as soon as that lists the component, and reports that there is no code.
# The component's folder itself, without `subfolder`, still loads.
# Output seen:
#   without model_index.json, AutoModel: Part
#   with it, DiffusionPipeline: Part
#   with it, AutoModel: Selected model repository does not appear to have any custom code or does not
#     have a valid `config.json` file.
#   with it, AutoModel of folder/part: Part
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  diffusers==0.42.1 torch==2.13.0 accelerate==1.15.0 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
"$folder/venv/bin/python" - "$folder/model" 2>"$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import json
import pathlib
import sys

import diffusers
import torch
from safetensors.torch import save_file

PART = """
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


class Part(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
"""
PIPELINE = """
from diffusers import DiffusionPipeline


class Demo(DiffusionPipeline):
    def __init__(self, part):
        super().__init__()
        self.register_modules(part=part)
"""

assert diffusers.__version__ == "0.42.1"
folder = pathlib.Path(sys.argv[1])
part = folder / "part"
part.mkdir(parents=True)
(part / "part_code.py").write_text(PART)
(part / "config.json").write_text(json.dumps({"_class_name": "Part", "auto_map": {"AutoModel": "part_code.Part"}}))
save_file({"weight": torch.ones(2)}, part / "diffusion_pytorch_model.safetensors")


def loaded(place, **more):
    model = diffusers.AutoModel.from_pretrained(str(place), trust_remote_code=True, **more)
    assert model.weight.tolist() == [1.0, 1.0]
    return type(model).__name__


print(f"without model_index.json, AutoModel: {loaded(folder, subfolder='part')}")
(folder / "pipeline.py").write_text(PIPELINE)
index = {"_class_name": ["pipeline", "Demo"], "_diffusers_version": "0.42.1", "part": ["part_code", "Part"]}
(folder / "model_index.json").write_text(json.dumps(index))
pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
assert pipeline.part.weight.tolist() == [1.0, 1.0]
print(f"with it, DiffusionPipeline: {type(pipeline.part).__name__}")
try:
    loaded(folder, subfolder="part")
except ValueError as error:
    print(f"with it, AutoModel: {error}")
    assert "does not appear to have any custom code" in str(error)
else:
    raise SystemExit("AutoModel now finds the component's code beside a model_index.json")
print(f"with it, AutoModel of folder/part: {loaded(part)}")
PY
