#!/usr/bin/env bash
# diffusers 0.42.1 with transformers 5.23.0: a pipeline saved in bfloat16 loads in two types, and its call fails.
#
# Without `torch_dtype`, diffusers gives the parameters of its own models float32, whatever the files hold. It hands
# `dtype=None` to transformers, which since version 5 keeps the type of the files. One would expect a pipeline that was
# saved in one type to come back in one type, this or that. Instead the text encoder is bfloat16 and the rest float32,
# `pipeline.dtype` says bfloat16, and the first call ends in an error about matrix types. A `torch_dtype` repairs it.
# Output seen:
#   unet float32, vae float32, text_encoder bfloat16; pipeline.dtype bfloat16
#   a call: mat1 and mat2 must have the same dtype, but got BFloat16 and Float
#   with torch_dtype: unet bfloat16, vae bfloat16, text_encoder bfloat16; pipeline.dtype bfloat16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 transformers==5.23.0 \
  torch==2.13.0 accelerate==1.15.0 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
"$folder/venv/bin/python" - "$folder" 2>"$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import json
import pathlib
import sys

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

assert (diffusers.__version__, transformers.__version__) == ("0.42.1", "5.23.0")
folder = pathlib.Path(sys.argv[1])
(folder / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}))
(folder / "merges.txt").write_text("#version: 0.2\n")
text = CLIPTextConfig(
    vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
    max_position_embeddings=8, bos_token_id=0, eos_token_id=1,
)
unet = UNet2DConditionModel(
    sample_size=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=2, cross_attention_dim=8,
    attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
)
blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
saved = StableDiffusionPipeline(
    vae=AutoencoderKL(block_out_channels=(4, 4, 4, 4), norm_num_groups=2, **blocks),
    text_encoder=CLIPTextModel(text),
    tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8),
    unet=unet,
    scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)
saved.to(torch.bfloat16).save_pretrained(folder / "saved")


def sample(pipeline):
    return pipeline("a", num_inference_steps=1, height=8, width=8, output_type="np").images


def types(pipeline):
    found = {name: getattr(pipeline, name).dtype for name in ("unet", "vae", "text_encoder")}
    listed = ", ".join(f"{name} {dtype}" for name, dtype in found.items())
    return f"{listed}; pipeline.dtype {pipeline.dtype}".replace("torch.", "")


assert sample(saved).shape == (1, 8, 8, 3)
loaded = StableDiffusionPipeline.from_pretrained(folder / "saved")
print(types(loaded))
assert loaded.unet.dtype == loaded.vae.dtype == torch.float32, "models of diffusers now keep the type of their file"
assert loaded.text_encoder.dtype == torch.bfloat16, "models of transformers now load as float32"
try:
    sample(loaded)
except RuntimeError as error:
    print(f"a call: {error}")
else:
    raise SystemExit("the loaded pipeline can be called now")
repaired = StableDiffusionPipeline.from_pretrained(folder / "saved", torch_dtype=torch.bfloat16)
print(f"with torch_dtype: {types(repaired)}")
assert sample(repaired).shape == (1, 8, 8, 3)
PY
