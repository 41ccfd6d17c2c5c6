"""`python -m genaffect_jax`, and `genaffect` once the package is installed: all commands under one name.

python -m genaffect_jax                 lists the commands
genaffect train --help                  is python -m genaffect_jax.train --help
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from genaffect_jax import cli
from genaffect_jax.errors import COMPLETE, WRONG_ARGUMENT
from genaffect_jax.io.output import expendable_output

# Modules are imported when they are run: a list of commands needs no JAX.
COMMANDS = {
    "train": ("genaffect_jax.train", "train a denoiser, an autoencoder or a face encoder"),
    "sample": ("genaffect_jax.sample", "sample an avatar set from a trained model"),
    "evaluate": ("genaffect_jax.evaluate", "measure a trained model on people that it has never seen"),
    "prepare": ("genaffect_jax.prepare.__main__", "prepare prompts, photos and face encoders for training"),
    "export": ("genaffect_jax.export.__main__", "write a trained model for PyTorch, ONNX and others, or read it back"),
    "compile_check": ("genaffect_jax.compile_check.__main__", "compile for TPUs that you do not have"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, or lists all; returns the exit status."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("--help", "-h"):
        with expendable_output():
            print("usage: genaffect COMMAND [OPTIONS]; genaffect COMMAND --help explains the options\n")
            for command, (module, about) in COMMANDS.items():
                print(f"  {command:<15}{about} (python -m {module.removesuffix('.__main__')})")
        return COMPLETE
    if name not in COMMANDS:
        print(f"error: {name}: no command; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return WRONG_ARGUMENT
    cli.run_as(f"genaffect {name}")
    status: int = importlib.import_module(COMMANDS[name][0]).main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
