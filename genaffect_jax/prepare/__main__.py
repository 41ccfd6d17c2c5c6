"""`python -m genaffect_jax.prepare COMMAND`: preparation of data and weights for training.

python -m genaffect_jax.prepare prompts --config PRESET --pipeline DIR --out prompts.safetensors
python -m genaffect_jax.prepare photos --root PHOTOS --out ALIGNED --models MODELS
python -m genaffect_jax.prepare arcface --weights w600k_r50.onnx --licence "..." --out arcface_r50.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from genaffect_jax import cli
from genaffect_jax.prepare import arcface, photos, prompts


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the command; returns the exit status."""
    return cli.run_subcommand({"prompts": prompts, "photos": photos, "arcface": arcface}, argv)


if __name__ == "__main__":
    sys.exit(main())
