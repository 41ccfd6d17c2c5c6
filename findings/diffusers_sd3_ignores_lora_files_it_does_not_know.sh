#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2: `load_lora_weights` of SD3 pipelines accepts LoRA files of kohya's scripts and of PEFT
# itself, and applies nothing.
#
# For FLUX and SDXL the same method converts kohya's files, so one would expect that here too, or else an error. A file
# with kohya's SD3 names (`lora_unet_joint_blocks_...`), or the one that PEFT's own save_pretrained writes
# (`base_model.model....`), loads without an exception: a warning in the log, no adapter in the transformer, and images
# that did not change. The same tensors under `transformer.` are applied.
# Output seen:
#   kohya's names: loaded without an error, layers with an adapter: 0
#   PEFT's own names: loaded without an error, layers with an adapter: 0
#   diffusers' names: loaded without an error, layers with an adapter: 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 peft==0.21.2 \
  transformers==5.23.0 huggingface_hub==2.4.0 safetensors==0.8.0 accelerate==1.15.0 numpy==2.4.6 2>"$folder/log" ||
  { cat "$folder/log" >&2; exit 1; }
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
"$folder/venv/bin/python" - "$folder" 2>"$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import sys

import diffusers
import peft
import torch
from diffusers.loaders import SD3LoraLoaderMixin
from safetensors.torch import save_file

assert (diffusers.__version__, peft.__version__) == ("0.42.1", "0.21.2")
WIDTH = 32
DOWN, UP = torch.ones(2, WIDTH), torch.ones(WIDTH, 2)
FILES = {
    "kohya's names": {
        "lora_unet_joint_blocks_0_x_block_attn_proj.lora_down.weight": DOWN,
        "lora_unet_joint_blocks_0_x_block_attn_proj.lora_up.weight": UP,
    },
    "PEFT's own names": {
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight": DOWN,
        "base_model.model.transformer_blocks.0.attn.to_q.lora_B.weight": UP,
    },
    "diffusers' names": {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": DOWN,
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": UP,
    },
}


def adapted(tensors):
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )

    class Pipeline(SD3LoraLoaderMixin):
        transformer, text_encoder, text_encoder_2, components, hf_device_map = model, None, None, {}, None

    save_file(tensors, f"{sys.argv[1]}/lora.safetensors")
    Pipeline().load_lora_weights(sys.argv[1], weight_name="lora.safetensors")
    return sum(hasattr(module, "lora_A") for module in model.modules())


found = {name: adapted(tensors) for name, tensors in FILES.items()}
for name, count in found.items():
    print(f"{name}: loaded without an error, layers with an adapter: {count}")
assert found == {"kohya's names": 0, "PEFT's own names": 0, "diffusers' names": 1}, "other names are understood now"
PY
