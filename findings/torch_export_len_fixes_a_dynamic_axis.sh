#!/usr/bin/env bash
# torch 2.13.0: `len(tensor)` in a module fixes a dynamic axis in torch.export, `tensor.shape[0]` does not.
#
# Python says that both are the same number, and in strict mode both export. With `strict=False`, which is the default
# and what torch.onnx.export tries first, `len` gives the traced length as a plain int: an axis that was declared
# dynamic becomes a constant, and the export is refused. The message names the axis, not the `len` that did it.
# Output seen:
#   Len, strict=False: ValueError: Found the following conflicts between user-specified ranges and inferred ranges ...
#   Len, strict=True: exported
#   Shape, strict=False: exported
#   Shape, strict=True: exported
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch

assert torch.__version__.split("+")[0] == "2.13.0"


class Len(torch.nn.Module):
    def forward(self, x, y):
        return x.unflatten(0, (len(y), -1)) + y[:, None]


class Shape(torch.nn.Module):
    def forward(self, x, y):
        return x.unflatten(0, (y.shape[0], -1)) + y[:, None]


def outcome(module, strict):
    axes = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    try:
        torch.export.export(
            module,
            (torch.ones(6, 2), torch.ones(3, 2)),
            dynamic_shapes=axes,
            strict=strict,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    except Exception as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0][:90]}"
    return "exported"


found = {(kind.__name__, strict): outcome(kind(), strict) for kind in (Len, Shape) for strict in (False, True)}
for (name, strict), what in found.items():
    print(f"{name}, strict={strict}: {what}")
assert found.pop(("Len", False)) != "exported", "len is traced as an axis now"
assert set(found.values()) == {"exported"}
PY
