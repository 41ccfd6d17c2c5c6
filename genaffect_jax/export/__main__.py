"""`python -m genaffect_jax.export COMMAND`: write a trained model in other forms, and read it back.

python -m genaffect_jax.export diffusers --model W --out DIR
python -m genaffect_jax.export from-torch DIR --out M
python -m genaffect_jax.export onnx --model W --out DIR
python -m genaffect_jax.export single-file --model W --out FILE.safetensors
python -m genaffect_jax.export lora --model W --out FILE.safetensors
python -m genaffect_jax.export merge --model W --out MERGED
python -m genaffect_jax.export model --model W --out DIR
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from genaffect_jax import cli
from genaffect_jax.export import diffusers, from_torch, lora, merge, onnx, released, single_file

COMMANDS = {
    "diffusers": diffusers,
    "from-torch": from_torch,
    "onnx": onnx,
    "single-file": single_file,
    "lora": lora,
    "merge": merge,
    "model": released,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the command; returns the exit status."""
    return cli.run_subcommand(COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
