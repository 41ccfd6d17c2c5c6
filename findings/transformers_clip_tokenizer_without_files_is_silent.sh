#!/usr/bin/env bash
# transformers 5.23.0: `CLIPTokenizer.from_pretrained` accepts a folder without vocabulary and gives every text the same
# tokens.
#
# A folder that was saved without its tokenizer (a network's `save_pretrained` alone writes config.json and weights) is
# an incomplete CLIP. One would expect an error that names the missing files. Instead a tokenizer
# of two tokens is built, and texts of one length become equal: CLIP scores are then computed without a warning, and do
# not depend on the words.
# Output seen:
#   vocabulary of 2 tokens
#   'a face showing joy' and 'a face showing woe': equal token ids
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0
mkdir "$folder/clip"
echo '{"model_type": "clip"}' >"$folder/clip/config.json"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/clip" <<'PY'
import sys

import transformers
from transformers import CLIPTokenizer

assert transformers.__version__ == "5.23.0"
tokenizer = CLIPTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
print(f"vocabulary of {len(tokenizer)} tokens")
first, second = (tokenizer(f"a face showing {word}")["input_ids"] for word in ("joy", "woe"))
print(f"'a face showing joy' and 'a face showing woe': {'equal' if first == second else 'different'} token ids")
assert len(tokenizer) == 2, "the tokenizer has a vocabulary now"
assert first == second
PY
