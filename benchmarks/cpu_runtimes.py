"""Runtimes of one model on a CPU, float32: `python benchmarks/cpu_runtimes.py --work DIR`.

One run folder of random weights and its exports are sampled by `Pipeline` (jax), the exported pipeline (torch: eager
and torch.compile) and the exported graphs (onnx). Measured are one evaluation of the denoiser for 1 and for 8 images of
one person, without guidance, and a whole set of 8 images in 4 steps with the default guidance (two branches): reference
image in, images out. Each side has a process of its own; the sides run in turn, `--rounds` times. Every process prints
a JSON line with its median seconds, and the last lines are medians over the rounds, beside the fastest round, which
other programs on the machine disturbed least. Calls that compile are not counted.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import tyro
from exported_set import compile_torch, measure, run_of, seconds_of

from genaffect_jax.expressions.vocabulary import vocabulary

IMAGES, STEPS = 8, 4
WORDS = list(vocabulary())[:IMAGES]
OPSETS = (20, 23)
Side = Literal["jax", "torch", "torch_compile", "onnx20", "onnx23"]
SIDES: tuple[Side, ...] = ("jax", "torch", "torch_compile", "onnx20", "onnx23")
Shape = Literal["avatar_s", "avatar_tiny"]
# For a number of images, a function that evaluates the denoiser; and one that samples a set.
Calls = tuple[Callable[[int], Callable[[], Any]], Callable[[], np.ndarray]]


def prepare(shape: Shape, folder: Path) -> None:
    """Writes `run`, a run folder with random weights, and its exports `torch`, `onnx20` and `onnx23`."""
    import jax.numpy as jnp
    from denoiser import random_parameters

    from genaffect_jax.checkpoints.components import install_encoders
    from genaffect_jax.checkpoints.manager import Checkpoints
    from genaffect_jax.checkpoints.run_dir import RunDir
    from genaffect_jax.config import to_json
    from genaffect_jax.export.diffusers import export_diffusers
    from genaffect_jax.export.onnx import export_onnx
    from genaffect_jax.io.weight_file import save_weights
    from genaffect_jax.models.build import build_networks

    run = run_of(shape)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, compute_dtype="float32"))
    source = RunDir(folder / "run")
    if not source.config.exists():
        denoiser, autoencoder = build_networks(run.model)
        parameters = {name: jnp.float32(value) for name, value in random_parameters(denoiser).items()}
        install_encoders(source, run.model)
        save_weights(random_parameters(autoencoder), source.autoencoder, "float32", run.model.autoencoder)
        with Checkpoints(source.path) as checkpoints:
            checkpoints.save_for_sampling(1, *denoiser.split(parameters), to_json(run))
        source.config.write_text(to_json(run))
    if not (folder / "torch").exists():
        export_diffusers(source.path, folder / "torch")
    for opset in OPSETS:
        if not (folder / f"onnx{opset}").exists():
            export_onnx(source.path, folder / f"onnx{opset}", opset=opset)


def reference_of(shape: Shape) -> np.ndarray:
    """A reference image of noise, uint8 [S, S, 3]."""
    size = run_of(shape).model.image_size
    return np.random.default_rng(1).integers(0, 256, (size, size, 3), np.uint8)


def jax_calls(shape: Shape, folder: Path) -> Calls:
    """`Pipeline`, and the jitted denoiser of its parameters."""
    import jax
    import jax.numpy as jnp

    from genaffect_jax import Pipeline
    from genaffect_jax.models.build import build_networks

    pipeline = Pipeline.load(folder / "run", devices=jax.local_devices()[:1])
    model, parameters = pipeline.config.model, pipeline.sampler.parameters
    network = build_networks(model)[0]
    side, channels = model.mmdit.sample_size, model.mmdit.in_channels

    @jax.jit
    def conditions(parameters: Any, vectors: Any) -> Any:
        embedding = jnp.ones((1, 1, model.conditioning.identity_embedding)) if model.identity_encoder else None
        latents = jnp.ones((1, 1, side, side, channels))
        mask = jnp.ones((1, 1), bool)
        return network.merge(parameters).encode_conditions(latents, mask, vectors, embedding=embedding)

    @jax.jit
    def velocity(parameters: Any, latents: Any, sigma: Any, given: Any) -> Any:
        return network.merge(parameters)(latents, sigma, given).prediction

    def evaluation(images: int) -> Callable[[], Any]:
        given = conditions(parameters, jnp.ones((1, images, model.conditioning.expression_width)))
        latents, sigma = jnp.ones((1, images, side, side, channels)), jnp.full((1, images), 0.5)
        return lambda: velocity(parameters, latents, sigma, given)

    reference, text = reference_of(shape), ", ".join(WORDS)
    return evaluation, lambda: pipeline(reference, text, steps=STEPS).images


def torch_calls(shape: Shape, folder: Path, mode: str) -> Calls:
    """The exported pipeline, and its transformer."""
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    exported = str(folder / "torch")
    load = {"custom_pipeline": exported, "trust_remote_code": True, "dtype": torch.float32}
    pipe = DiffusionPipeline.from_pretrained(exported, **load)
    compile_torch(pipe, mode)
    config = pipe.adapter.config
    side, channels = pipe.transformer.config.sample_size, config.in_channels

    def evaluation(images: int) -> Callable[[], Any]:
        latents, registers = torch.ones(images, channels, side, side), config.register_tokens
        face = torch.ones(1, 1, config.face_width) if config.face_width else None
        positions = pipe.transformer.pos_embed.cropped_pos_embed(side, side)
        text = torch.eye(registers).expand(images, -1, -1), torch.zeros(images, 1)
        vectors = torch.ones(1, images, config.expression_width)

        @torch.no_grad()
        def evaluate() -> Any:
            return pipe.transformer(latents, *text, torch.full((images,), 500.0), return_dict=False)[0]

        with torch.no_grad():
            pipe.adapter.condition(pipe.transformer, pipe.adapter(latents[:1, None], positions, vectors, face))
        return evaluate

    reference, words = Image.fromarray(reference_of(shape)), ", ".join(WORDS)
    return evaluation, lambda: pipe(reference, words, num_inference_steps=STEPS, output_type="np").images


def onnx_calls(shape: Shape, folder: Path) -> Calls:
    """The exported sampler, and its denoiser."""
    from genaffect_jax.interop.onnx.sampler import Sampler

    sample = Sampler(folder, ["CPUExecutionProvider"])
    reference = reference_of(shape)[None]
    vectors = sample.vectors(WORDS)

    def evaluation(images: int) -> Callable[[], Any]:
        faces = np.moveaxis(reference, -1, 1).astype(np.float32) / np.float32(127.5) - 1
        kept = np.zeros(1, bool)
        given = {"references": faces, "vectors": vectors[:images], "drop_identity": kept, "drop_expression": kept}
        names = [output.name for output in sample.conditions.get_outputs()]
        inputs = dict(zip(names, sample.conditions.run(None, given), strict=True))
        shapes = {i.name: i.shape for i in sample.denoiser.get_inputs()}
        inputs["latents"] = np.ones((images, *shapes["latents"][1:]), np.float32)
        inputs["sigma"] = np.full(images, 0.5, np.float32)
        for name in ("identity_scale", "expression_scale"):
            inputs[name] = np.ones(shapes[name], np.float32)
        return lambda: sample.denoiser.run(None, inputs)[0]

    return evaluation, lambda: sample(reference, vectors, steps=STEPS)


def measure_side(side: Side, shape: Shape, folder: Path, repeats: int) -> dict[str, Any]:
    """Median seconds of one side in this process."""
    if side == "jax":
        evaluation, sample = jax_calls(shape, folder)
    elif side.startswith("onnx"):
        evaluation, sample = onnx_calls(shape, folder / side)
    else:
        evaluation, sample = torch_calls(shape, folder, "eager" if side == "torch" else "default")
    row: dict[str, Any] = {"shape": shape, "side": side}
    for images in (1, IMAGES):
        row[f"evaluation_{images}"] = median(seconds_of(evaluation(images), repeats)[0])
    return {**row, "set": measure(sample, IMAGES, max(repeats // 3, 1))["seconds"]}


def main(
    work: Path,
    shapes: tuple[Shape, ...] = ("avatar_tiny", "avatar_s"),
    sides: tuple[Side, ...] = SIDES,
    rounds: int = 3,
    repeats: int = 9,
    alone: bool = False,
) -> None:
    """Measures all sides in turn.

    Args:
        work: keeps the run folders and exports.
        shapes: presets whose networks are measured.
        sides: what is measured.
        rounds: processes of each side.
        repeats: evaluations that a process times; it times a third as many sets.
        alone: measure the only side of the only shape in this process.
    """
    if alone:
        print(json.dumps(measure_side(sides[0], shapes[0], work / shapes[0], repeats)), flush=True)
        return
    rows = []
    for shape in shapes:
        prepare(shape, work / shape)
        for _ in range(rounds):
            for side in sides:
                options = ["--work", work, "--shapes", shape, "--sides", side, "--repeats", repeats, "--alone"]
                command = [sys.executable, __file__, *map(str, options)]
                line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
                print(line, flush=True)
                rows.append(json.loads(line))
    for shape in shapes:
        for side in sides:
            own = [row for row in rows if (row["shape"], row["side"]) == (shape, side)]
            found: dict[str, Any] = {"rounds": len(own), "shape": shape, "side": side}
            for name in (key for key, value in own[0].items() if isinstance(value, float)):
                seconds = [row[name] for row in own]
                found |= {name: round(median(seconds), 4), f"{name}_fastest": round(min(seconds), 4)}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
