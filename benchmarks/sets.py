"""Time and device memory of whole sets, by the number of images in them: `python benchmarks/sets.py --help`.

SD3.5-medium and SD3's autoencoder with random bfloat16 weights go through the code that `Pipeline` uses: references
are encoded, conditions made, the set is denoised with joint guidance (two branches), decoded, and fetched to the host.
Every image has 333 text tokens of its own (random embeddings), 16 identity and 16 expression tokens, and sees half of
the image tokens of 8 anchors. A set without others to look at (one image) shares nothing.

Every size is one JSON line. `seconds` is the median of whole sets after one that is not counted, if that one had
something to compile. Memory is given three times, as none of the figures says all:

- `program_gib`: arguments (weights, prompts, and the anchor KV cache if there is one), results and scratch of the
  largest program of this size, by XLA's account.
- `peak_gib`: the device's high-water mark since this process began. It never falls, hence sizes are measured in
  increasing order, and it counts what the compiler took while it tried kernels out.
- `in_use_gib`: what stays allocated between sets, mostly weights.

The set that compares with `benchmarks/peer_set.py`: `--sizes 8 --references 1`, for 512 and for 1024 `--pixels`.
`--results FILE --plot FILE` draws a results file and measures nothing, so another machine can do that.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from statistics import median
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from denoiser import random_parameters
from jax.sharding import Mesh

from genaffect_jax.config import AutoencoderConfig, ConditioningConfig, MMDiTConfig, ModelConfig, SamplingConfig
from genaffect_jax.diffusion.schedule import padded_sigmas
from genaffect_jax.inference.chunking import SampleRequest, SetSampler
from genaffect_jax.inference.program import IMAGES, SamplerParams, SamplerSpec, make_program
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.mmdit.score_bound import LARGEST_SCORE, score_bound
from genaffect_jax.models.prompts import Prompts
from genaffect_jax.parallel.memory import program_bytes
from genaffect_jax.parallel.sharding import replicated

TEXT_TOKENS = 333
BRANCH_TOKENS = 16
SHIFT = 3.0
GUIDANCE = 4.0
LABEL_GAP = 11  # points between the labels of two lines


class Programs(dict[Any, jax.stages.Compiled]):
    """Compiled programs that note which of them are run."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[Any] = set()

    def __getitem__(self, key: Any) -> jax.stages.Compiled:
        self.used.add(key)
        return super().__getitem__(key)


def model_config(pixels: int, layers: int, heads: int, channels: tuple[int, ...]) -> ModelConfig:
    """SD3.5-medium for images of one size, with a resampler for identity tokens; 0 and () leave the sizes alone."""
    network, images = MMDiTConfig.sd35_medium(), AutoencoderConfig.sd3()
    if layers:
        dual = tuple(i for i in network.dual_attention_layers if i < layers)
        network = dataclasses.replace(network, num_layers=layers, dual_attention_layers=dual)
    if heads:
        network = dataclasses.replace(network, num_attention_heads=heads)
    if channels:
        images = AutoencoderConfig(block_out_channels=channels, norm_num_groups=min(32, *channels))
    return ModelConfig(
        mmdit=dataclasses.replace(network, sample_size=pixels // images.downsample),
        autoencoder=images,
        conditioning=ConditioningConfig(expression_tokens=BRANCH_TOKENS, identity_tokens=BRANCH_TOKENS),
    )


def make_sampler(config: ModelConfig, prompts: int, max_free: bool) -> tuple[SetSampler, bool]:
    """A set sampler with random weights and text embeddings on one device, and whether its scores are bounded."""
    weights = random_parameters(build_networks(config)[0])
    max_free = max_free and score_bound(weights) <= LARGEST_SCORE
    denoiser, images = build_networks(config, "bfloat16", max_free)
    mesh = Mesh(np.array(jax.local_devices()[:1]), (IMAGES,))
    keys = jax.random.split(jax.random.key(1))
    table = Prompts(
        jax.random.normal(keys[0], (prompts, TEXT_TOKENS, config.mmdit.joint_attention_dim), jnp.bfloat16),
        jax.random.normal(keys[1], (prompts, config.mmdit.pooled_projection_dim), jnp.bfloat16),
        jnp.zeros((), jnp.int32),
    )
    weights, frozen_components = jax.device_put(
        (weights, {"autoencoder": random_parameters(images), "prompts": table}), replicated(mesh)
    )
    sampler = SetSampler(
        config, make_program(config, denoiser, images, mesh=mesh), weights, frozen_components, "bfloat16", 1
    )
    sampler.compiled = Programs()
    return sampler, max_free


def draw(sampler: SetSampler, config: ModelConfig, size: int, references: np.ndarray, settings: SamplingConfig) -> Any:
    """One set, cut into anchors and others as `Pipeline` does it; images [size, S, S, 3]."""
    network = config.mmdit
    numbers = np.random.default_rng(0)
    images = SampleRequest(
        numbers.random((size, config.conditioning.expression_width), np.float32),
        np.arange(size, dtype=np.int32),
        np.arange(1, size + 1, dtype=np.int32),
    )
    shared = round(settings.consistency * network.image_tokens) if size > 1 else 0
    anchors = min(size, settings.anchors or 0) if shared else 0
    params = SamplerParams.plain(network.num_layers, padded_sigmas(settings.steps, SHIFT), settings.steps)
    return sampler.sample(
        references,
        np.ones(len(references), bool),
        images.take(np.arange(anchors, dtype=np.int32)),
        images.take(np.arange(anchors, size, dtype=np.int32)),
        SamplerSpec(mode=settings.mode, shared=shared, uses_block_cache=settings.block_cache_interval > 1),
        dataclasses.replace(
            params,
            guidance_expression=jnp.float32(GUIDANCE),
            block_cache_interval=jnp.int32(settings.block_cache_interval),
        ),
        settings,
        return_anchors=anchors > 0,
    )


def memory(entry: str) -> float | None:
    """An entry of the device's own account in GiB, if it keeps one."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return round(stats[entry] / 2**30, 2) if entry in stats else None


def measure(
    sampler: SetSampler, config: ModelConfig, size: int, references: np.ndarray, settings: SamplingConfig, repeats: int
) -> dict[str, Any]:
    """The row of one set size.

    Raises:
        SystemExit: an image is of one colour, as it is when its numbers are not finite.
    """
    programs = sampler.compiled
    assert isinstance(programs, Programs)
    programs.used.clear()
    before = len(programs)
    times: list[float] = []
    while len(times) < repeats + (len(programs) > before):
        start = time.perf_counter()
        drawn = draw(sampler, config, size, references, settings)
        times.append(time.perf_counter() - start)
    flat = [i for i, image in enumerate(drawn) if image.min() == image.max()]
    if flat or len(drawn) != size:
        raise SystemExit(f"{size} images asked for, {len(drawn)} drawn, of one colour: {flat}")
    compiled = len(programs) - before
    seconds = median(times[1:] if compiled else times)
    return {
        "images": size,
        "steps": settings.steps,
        "pixels": config.image_size,
        "kv_cache": settings.kv_cache,
        "bank_kept": any(spec.pool == "given" for spec, *_ in programs.used),
        "seconds": round(seconds, 3),
        "seconds_a_image": round(seconds / size, 3),
        "compiled": compiled,
        "compile_seconds": round(times[0] - seconds, 1) if compiled else 0.0,
        "program_gib": round(max(program_bytes(programs[key]) for key in set(programs.used)) / 2**30, 2),
        "peak_gib": memory("peak_bytes_in_use"),
        "in_use_gib": memory("bytes_in_use"),
        "all_seconds": [round(x, 3) for x in times],
    }


def plot(results: Path, file: Path) -> None:
    """Draws time and memory of every run in a results file against the number of images, both axes logarithmic."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    runs: dict[tuple[int, int, str], dict[int, dict[str, Any]]] = {}
    for row in map(json.loads, results.read_text().splitlines()):
        if "images" in row:  # a size that was measured again replaces what was measured before
            runs.setdefault((row["pixels"], row["steps"], row["kv_cache"]), {})[row["images"]] = row
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    ends: dict[Axes, list[tuple[float, float, str, str]]] = {time_axes: [], memory_axes: []}
    for i, ((pixels, steps, kv_cache), run) in enumerate(sorted(runs.items())):
        sizes, colour = sorted(run), f"C{i}"
        name = f"{pixels} px, {steps} steps" + (f", KV cache {kv_cache}" if kv_cache != "auto" else "")
        for axes, field, style, label in (
            (time_axes, "seconds", "-", name),
            (memory_axes, "peak_gib", "-", "device, highest so far" + (f": {name}" if len(runs) > 1 else "")),
            (memory_axes, "program_gib", "--", "largest program" + (f": {name}" if len(runs) > 1 else "")),
        ):
            values = [run[size][field] for size in sizes]
            if None not in values:
                axes.plot(sizes, values, style, color=colour, marker="o", markersize=4)
                ends[axes].append((values[-1], sizes[-1], label, colour))
    ticks = sorted({size for run in runs.values() for size in run})
    seconds, most = max((row["seconds"], size) for run in runs.values() for size, row in run.items())
    slope = 1.5 * seconds / most
    time_axes.plot([ticks[0], most], [slope * ticks[0], slope * most], color="0.75", linewidth=1, zorder=0)
    place = (ticks[0] * most**3) ** 0.25
    time_axes.annotate(
        "in proportion to the images",
        (place, slope * place),
        (-8, 4),
        textcoords="offset points",
        color="0.5",
        fontsize=9,
        ha="right",
    )
    for axes, unit in ((time_axes, "time of the set, s"), (memory_axes, "device memory, GiB")):
        axes.set(xscale="log", yscale="log", xlabel="images in the set", ylabel=unit)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        low, high = axes.get_ylim()
        marks = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
        low, high = max(m for m in marks if m <= low), min(m for m in marks if m >= high)
        marks = [m for m in marks if low <= m <= high]
        axes.set_yticks(marks, [f"{m:g}" for m in marks])
        axes.set_ylim(low, high)
    for axes, found in ends.items():
        place_labels(axes, found)
    figure.savefig(file, dpi=150)


def place_labels(axes: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes what a line is beside its end, (value, size, label, colour), from the lowest up without overlap."""
    below = -float("inf")
    for value, size, label, colour in sorted(ends):
        height = axes.transData.transform((size, value))[1] * 72 / axes.figure.dpi
        place = max(height, below + LABEL_GAP)
        axes.annotate(
            label,
            (size, value),
            (8, place - height),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
        below = place


def main(
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 135),
    steps: tuple[int, ...] = (28,),
    pixels: int = 512,
    kv_cache: Literal["auto", "always", "never"] = "auto",
    consistency: float = 0.5,
    anchors: int = 8,
    chunk: int = 8,
    references: int = 4,
    block_cache_interval: int = 1,
    repeats: int = 2,
    max_free: bool = True,
    results: Path | None = None,
    plot_file: Path | None = None,
    layers: int = 0,
    heads: int = 0,
    autoencoder_channels: tuple[int, ...] = (),
) -> None:
    """Measures sets, or plots what was measured.

    Args:
        sizes: images in the sets.
        steps: denoising steps; several numbers are measured for every size, and compile once without a KV cache.
        pixels: side of the images.
        kv_cache: whether the anchors' keys and values are kept (see `SamplingConfig.kv_cache`).
        consistency: share of its image tokens that every anchor shows the others.
        anchors: images, the first of the set, that all others look at.
        chunk: images drawn at once beside the anchors.
        references: images of the person that the program encodes; `Pipeline` always gives it 4, some of them padding.
        block_cache_interval: evaluations that share one computation of the middle blocks.
        repeats: sets that are timed.
        max_free: let attention use that its scores have a bound, as `Pipeline` does, if these weights give one.
        results: file that the JSON lines are appended to.
        plot_file: draw the results file into this file and measure nothing.
        layers: use only this many blocks, for a try on a small machine; 0: all.
        heads: attention heads of every block, for a try; 0: those of the model.
        autoencoder_channels: channels of the autoencoder's four resolutions, for a try; empty: those of SD3.
    """
    if plot_file is not None:
        if results is None:
            raise SystemExit("--plot_file: needs --results, the file to read")
        return plot(results, plot_file)

    def say(row: dict[str, Any]) -> None:
        line = json.dumps(row)
        print(line, flush=True)
        if results is not None:
            with results.open("a") as file:
                file.write(line + "\n")

    config = model_config(pixels, layers, heads, autoencoder_channels)
    sampler, max_free = make_sampler(config, max(sizes) + 1, max_free)
    say(
        {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "kv_cache": kv_cache,
            "consistency": consistency,
            "anchors": anchors,
            "chunk": chunk,
            "references": references,
            "block_cache_interval": block_cache_interval,
            "max_free": max_free,
            "layers": config.mmdit.num_layers,
            "width": config.mmdit.width,
            "weights_gib": memory("bytes_in_use"),
            "peak_gib": memory("peak_bytes_in_use"),
        }
    )
    people = np.random.default_rng(1).integers(0, 256, (references, pixels, pixels, 3), np.uint8)
    for size in sorted(sizes):
        for count in steps:
            settings = SamplingConfig(
                steps=count,
                guidance=GUIDANCE,
                consistency=consistency,
                anchors=anchors,
                chunk=chunk,
                kv_cache=kv_cache,
                block_cache_interval=block_cache_interval,
            )
            say(measure(sampler, config, size, people, settings, repeats))


if __name__ == "__main__":
    tyro.cli(main)
