"""Does this folder compute what genaffect_jax computed? The first line with DIFFERS names the part to look at."""

import json
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

# `python check.py [cuda]`, with torch and diffusers; the exit status says whether everything is as it was.
folder, device = Path(__file__).resolve().parent, sys.argv[1] if len(sys.argv) > 1 else "cpu"
record, stored, failed = json.loads((folder / "parity.json").read_text()), load_file(folder / "parity.safetensors"), 0
pipe = DiffusionPipeline.from_pretrained(str(folder), custom_pipeline=str(folder), trust_remote_code=True).to(device)
for case in record["cases"]:
    name, limits, seen, hooks = case["name"], record["tolerances"], {}, []
    for n, module in enumerate([*pipe.transformer.transformer_blocks, pipe.adapter]):
        keep = lambda module, given, out, n=n, seen=seen: seen.update({n: seen.get(n, out)})  # noqa: E731
        hooks.append(module.register_forward_hook(keep))
    images = [Image.fromarray(image.numpy()) for image in stored[f"{name}.reference"]]
    given = {"latents": stored[f"{name}.noise"], "shared_tokens": stored.get(f"{name}.tokens"), "output_type": "np"}
    state = pipe.run(image=images, expressions=case["expressions"], **given, **case["settings"])
    _ = [hook.remove() for hook in hooks]
    found = {key: state.get(key) for key in ("vectors", "reference_latents", "face", "latents", "images")}
    pairs = [[x.mean((0, 2)).flatten() for pair in block for x in pair] for block in seen.pop(len(hooks) - 1)]
    found["keys_and_values"] = torch.stack([torch.stack(block) for block in pairs])
    found["blocks"] = torch.stack([seen[n][1].mean((0, 1)) for n in range(len(seen))])
    for key in ("vectors", "reference_latents", "face", "keys_and_values", "blocks", "latents", "images"):
        if (expected := stored.get(f"{name}.{key}")) is not None:
            error = (torch.as_tensor(found[key]).cpu().float() - expected.float()).abs().flatten(1)
            limit = 1 if key == "images" else limits.get(key, limits["features"] * expected.abs().max().item())
            good = (error <= limit).float().mean().item() >= (limits["pixel_share"] if key == "images" else 1)
            where = "" if good else f"  DIFFERS, first at {(error > limit).any(1).int().argmax().item()}"
            print(f"{name:10} {key:18} largest difference {error.max().item():.2e}, allowed {limit:.2e}{where}")
            failed += not good
print(f"FAILED: {failed} results differ" if failed else "passed")
sys.exit(bool(failed))
