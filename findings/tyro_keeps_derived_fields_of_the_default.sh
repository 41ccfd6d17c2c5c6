#!/usr/bin/env bash
# tyro 1.0.17: a dataclass field that others decide (`init=False`, set in __post_init__) keeps the value of the default
# instance, although the command line changed the fields that decide it.
#
# Without a default instance the derived field is right. With one, as where presets are overridden by options, it is
# stale, in the instance itself and in one nested in it: heads 4 beside the width of 6 heads. The instance is no longer
# one that its class can make; code that stores it and compares it later refuses it. `dataclasses.replace`, level by
# level, derives the fields anew.
# Output seen:
#   no default:     Network(heads=4, width=256)
#   default:        Network(heads=4, width=384)
#   nested default: Run(network=Network(heads=4, width=384))
#   replaced:       Network(heads=4, width=256)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tyro==1.0.17
"$folder/venv/bin/python" - <<'PY'
import dataclasses

import tyro


@dataclasses.dataclass(frozen=True)
class Network:
    heads: int = 6
    width: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", 64 * self.heads)


@dataclasses.dataclass(frozen=True)
class Run:
    network: Network = dataclasses.field(default_factory=Network)


plain = tyro.cli(Network, args=["--heads", "4"])
given = tyro.cli(Network, args=["--heads", "4"], default=Network())
nested = tyro.cli(Run, args=["--network.heads", "4"], default=Run())
replaced = dataclasses.replace(given)
print(f"no default:     {plain}\ndefault:        {given}\nnested default: {nested}\nreplaced:       {replaced}")
assert plain.width == replaced.width == 256
assert given.width == nested.network.width == 384, "derived fields follow the command line now"
PY
echo "as described"
