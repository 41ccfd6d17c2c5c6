#!/usr/bin/env bash
# diffusers 0.42.1: a dict in a configuration comes back in another order than it was saved in.
#
# `save_config` writes JSON with sorted keys, and sorts those of the dicts inside the entries too. One would expect the
# order of a dict, which Python and JSON files keep, to be part of the value: a dict from word to something, say, whose
# order is that of the rows of a table of embeddings. After a round trip the words are in alphabetical order, and a
# test that compares the dicts does not notice.
# Output seen:
#   made with sad, angry, happy; loaded with angry, happy, sad
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  diffusers==0.42.1 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
"$folder/venv/bin/python" - "$folder" 2>"$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import sys

import diffusers
from diffusers.configuration_utils import ConfigMixin, register_to_config


class Table(ConfigMixin):
    config_name = "config.json"

    @register_to_config
    def __init__(self, words: dict):
        pass


assert diffusers.__version__ == "0.42.1"
made = Table({"sad": 0.5, "angry": 1.0, "happy": 0.7})
made.save_config(sys.argv[1])
loaded = Table.from_config(Table.load_config(sys.argv[1]))
print(f"made with {', '.join(made.config.words)}; loaded with {', '.join(loaded.config.words)}")
assert loaded.config.words == made.config.words
assert list(made.config.words) == ["sad", "angry", "happy"]
assert list(loaded.config.words) == ["angry", "happy", "sad"], "the order of a dict is kept now"
PY
