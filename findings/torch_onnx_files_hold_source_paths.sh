#!/usr/bin/env bash
# torch 2.13.0 with onnxscript 0.7.2: an exported .onnx file holds paths and source lines of the machine that made it.
#
# One would expect a graph and its weights. The nodes carry a `pkg.torch.onnx.stack_trace` entry in their metadata:
# file names with their folders and the lines of Python that made the node, of the user's model too. In networks of many
# small nodes the metadata is a tenth of the file. No option of torch.onnx.export leaves it out; it can be removed from
# the nodes afterwards.
# Output seen:
#   3 of 3 nodes carry a stack trace; it names the model's file with its folder: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 onnx==1.23.2 \
  onnxscript==0.7.2
mkdir "$folder/home_of_the_model"
cat > "$folder/home_of_the_model/network.py" <<'PY'
import torch


class Network(torch.nn.Module):
    def forward(self, x):
        return torch.sin(x) * 2 + x
PY
cd "$folder/home_of_the_model"
"$folder/venv/bin/python" - <<'PY'
import onnx
import torch
from network import Network

assert torch.__version__.split("+")[0] == "2.13.0"
torch.onnx.export(Network(), (torch.ones(2, 3),), "network.onnx", dynamo=True, verbose=False)
nodes = onnx.load("network.onnx").graph.node
traces = [entry.value for node in nodes for entry in node.metadata_props if entry.key == "pkg.torch.onnx.stack_trace"]
named = any("home_of_the_model" in trace and "torch.sin(x) * 2 + x" in trace for trace in traces)
print(f"{len(traces)} of {len(nodes)} nodes carry a stack trace; it names the model's file with its folder: {named}")
assert traces, "nodes carry no stack traces any more"
assert named, "stack traces no longer name files"
PY
