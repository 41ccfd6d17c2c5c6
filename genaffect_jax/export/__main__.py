"""`python -m genaffect_jax.export COMMAND`: write a trained model in other forms.

python -m genaffect_jax.export merge --model W --out MERGED
python -m genaffect_jax.export lora --model W --out FILE.safetensors
python -m genaffect_jax.export single-file --model W --out FILE.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from genaffect_jax import cli
from genaffect_jax.export import lora, merge, single_file


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the command; returns the exit status."""
    return cli.run_subcommand({"merge": merge, "lora": lora, "single-file": single_file}, argv)


if __name__ == "__main__":
    sys.exit(main())
