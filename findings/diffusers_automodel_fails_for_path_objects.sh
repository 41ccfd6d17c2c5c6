#!/usr/bin/env bash
# diffusers 0.42.1: `AutoModel.from_pretrained` takes a pathlib.Path, loads the model and then fails.
#
# The signature says `str | os.PathLike`, and the model's own class loads from a Path, so one would expect AutoModel to
# do so too. Instead it ends with a TypeError about the joining of texts, after all weights have been read; the message
# names neither the argument nor the call. `str(path)` helps.
# Output seen:
#   AutoencoderKL, Path: AutoencoderKL
#   AutoModel, str: AutoencoderKL
#   AutoModel, Path: TypeError: sequence item 0: expected str instance, PosixPath found
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  diffusers==0.42.1 torch==2.13.0 accelerate==1.15.0 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
"$folder/venv/bin/python" - "$folder/model" 2>"$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import pathlib
import sys

import diffusers

assert diffusers.__version__ == "0.42.1"
folder = pathlib.Path(sys.argv[1])
diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(folder)
print(f"AutoencoderKL, Path: {type(diffusers.AutoencoderKL.from_pretrained(folder)).__name__}")
print(f"AutoModel, str: {type(diffusers.AutoModel.from_pretrained(str(folder))).__name__}")
try:
    diffusers.AutoModel.from_pretrained(folder)
except TypeError as error:
    print(f"AutoModel, Path: TypeError: {error}")
    assert "expected str instance" in str(error)
else:
    raise SystemExit("AutoModel loads from a Path now")
PY
