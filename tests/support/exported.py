"""Run folders of three kinds of models, their exports, and how an exported folder is used without this package."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.sd3_runs import MMDIT, run_config, save_run

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import ConditioningConfig, DenoiserRun
from genaffect_jax.data.prompts.table import PromptTable, all_prompts
from genaffect_jax.expressions.prototypes import WordPrototypes
from genaffect_jax.io.weight_file import checksum, resolve_weights

KINDS = ("avatar", "text", "faces")

# Runs a file as `python FILE ...` in a process in which neither JAX nor this package can be imported.
ALONE = """
import importlib.abc, runpy, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "genaffect_jax"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def save_text_run(folder: Path) -> None:
    """A model of SD3.5's shape that reads prompts: two kinds of blocks, RMS norms, velocity."""
    config = run_config()
    save_run(folder, config)
    save_prompts(folder, config)


def save_prompts(folder: Path, config: DenoiserRun) -> None:
    """Random text embeddings for a run of `sd3_runs.run_config`."""
    rng, texts = np.random.default_rng(3), all_prompts(config.text)
    tokens = rng.standard_normal((len(texts), 6, MMDIT.joint_attention_dim), np.float32)
    pooled = rng.standard_normal((len(texts), MMDIT.pooled_projection_dim), np.float32)
    text = config.text
    PromptTable(texts, tokens, pooled, text.template, "random", text.max_sequence_length).write(RunDir(folder).prompts)


def faces_config() -> DenoiserRun:
    """A model with everything that can be there: register tokens, clean latents, a resampler, both face encoders."""
    config = run_config(register_tokens=3, pooled_projection_dim=0)
    conditioning = ConditioningConfig(
        expression_space="encoder",
        expression_tokens=2,
        identity_layers=2,
        identity_tokens=5,
        identity_embedding=256,
    )
    model = dataclasses.replace(
        config.model,
        conditioning=conditioning,
        prediction="x0",
        identity_encoder="package:identity_avatar",
        expression_encoder="package:expression_avatar",
    )
    return dataclasses.replace(config, model=model)


def save_faces_run(folder: Path) -> None:
    """A run of `faces_config`."""
    config = faces_config()
    save_run(folder, config)
    run_dir = RunDir(folder)
    shutil.copyfile(resolve_weights(config.model.identity_encoder), run_dir.identity_encoder)
    shutil.copyfile(resolve_weights(config.model.expression_encoder), run_dir.expression_encoder)
    rng = np.random.default_rng(4)
    words = {name: rng.random(40, np.float32) for name in ("joy", "anger", "sadness", "neutral")}
    prototypes = WordPrototypes(
        words, dict.fromkeys(words, 3), "expression_avatar", checksum(run_dir.expression_encoder)
    )
    prototypes.write(run_dir.word_prototypes)


def run_alone(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a Python file without JAX and without this package; see `ALONE`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf"), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-c", ALONE, str(script), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def load(folder: Path, code: Path | None = None, **more: Any) -> Any:
    """The exported pipeline; `code` is where pipeline.py lies, if not in the folder."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(
        str(folder), custom_pipeline=str(code or folder), trust_remote_code=True, **more
    )


def to_pil(image: np.ndarray) -> Image.Image:
    """A uint8 array as a Pillow image."""
    return Image.fromarray(image)


def assert_same_images(found: Any, expected: np.ndarray) -> None:
    """The same images up to rounding, as Pillow images or uint8 arrays."""
    error = np.abs(np.stack([np.asarray(image) for image in found]).astype(int) - expected.astype(int))
    assert (error <= 1).mean() >= 0.999
