"""How a set is split into calls of the program: the anchors first, then all other images in chunks beside them.

Anchors share tokens among themselves and all other images read the anchors, so an image depends neither on its chunk
nor on the number of devices, and memory does not grow with the set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from genaffect_jax.config import DType, ModelConfig, SamplingConfig
from genaffect_jax.errors import ConfigError, MemoryLimitError, SamplingError
from genaffect_jax.inference.program import AnchorCache, Program, SamplerParams, SamplerSpec, SetInputs, kv_cache_bytes
from genaffect_jax.models.functional import Parameters
from genaffect_jax.parallel.compilation import Tell, compile_telling
from genaffect_jax.parallel.memory import device_memory, is_out_of_memory, program_bytes

# Largest share of a device's memory for the anchor KV cache. Beside it lie the weights, the activations of one chunk
# and, while the cache is computed, a second copy of it.
KV_CACHE_SHARE = 0.3

# Settings that strengthen what the model was trained to do; at 1 they leave it as trained.
_STRENGTHS = ("guidance", "guidance_identity", "guidance_expression", "identity_scale", "expression_scale")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SampleRequest:
    """Images to sample: what each shows, and the number that decides its noise."""

    expression: Float32[np.ndarray, "E W"]
    """Expression vectors."""
    noise_ids: Int32[np.ndarray, " E"]
    """Numbers that, with the seed, decide the noise."""
    prompt: Int32[np.ndarray, " E"] | None = None
    """Rows of the prompt table, for models with a text stream."""

    def __len__(self) -> int:
        return len(self.noise_ids)

    def take(self, places: Int32[np.ndarray, " n"]) -> SampleRequest:
        """The requests at these places."""
        prompt = None if self.prompt is None else self.prompt[places]
        return SampleRequest(self.expression[places], self.noise_ids[places], prompt)

    def followed_by(self, more: SampleRequest) -> SampleRequest:
        """These requests, then more."""
        prompt = None
        if self.prompt is not None and more.prompt is not None:
            prompt = np.concatenate([self.prompt, more.prompt])
        return SampleRequest(
            np.concatenate([self.expression, more.expression]),
            np.concatenate([self.noise_ids, more.noise_ids]),
            prompt,
        )


class SetSampler:
    """Samples sets with one model.

    Args:
        config: sizes.
        program: what `inference.program.make_program` built.
        parameters, frozen_components: its first two arguments.
        dtype: type of activations.
        devices: number of devices of the program's mesh.

    Attributes:
        parameters, frozen_components: arrays that the program reads.
        compiled: the programs compiled so far, by spec and shapes.
    """

    def __init__(
        self,
        config: ModelConfig,
        program: Program,
        parameters: Parameters,
        frozen_components: Mapping[str, Any],
        dtype: DType,
        devices: int,
    ) -> None:
        self._config, self._program, self._devices = config, program, devices
        self.parameters, self.frozen_components = parameters, frozen_components
        self._item_bytes = 2 if dtype == "bfloat16" else 4
        self.compiled: dict[Any, jax.stages.Compiled] = {}
        # Asking a program for its memory takes 56 ms on a GPU, as long as a small model's whole set.
        self._needed: dict[Any, int] = {}

    def sample(
        self,
        references: UInt8[np.ndarray, "R S S 3"],
        reference_mask: Bool[np.ndarray, " R"],
        anchors: SampleRequest,
        non_anchors: SampleRequest,
        spec: SamplerSpec,
        params: SamplerParams,
        settings: SamplingConfig,
        return_anchors: bool,
        progress: Progress | None = None,
        tell: Tell | None = None,
    ) -> UInt8[np.ndarray, "A+E S S 3"]:
        """The images of the anchors (if asked for), then all others.

        Args:
            references, reference_mask: images of the person; the mask is False for padding.
            anchors: images whose tokens all images read; if there are none, every image is sampled by itself.
            non_anchors: sampled in chunks of `settings.chunk` on every device.
            spec: guidance, solver and number of shared tokens.
            params: arguments of the program, for exactly `settings.steps` steps or padded.
            settings: `chunk` and `kv_cache`.
            return_anchors: whether the anchors' own images are wanted.
            progress: called with (images done, images in all).
            tell: called with lines about a compilation (`parallel.compilation`).

        Raises:
            ConfigError: `kv_cache` is "always" although the guidance does not allow it.
            MemoryLimitError: a call needs more memory than a device has.
            SamplingError: an image holds NaN or infinite numbers.
        """
        images: list[np.ndarray] = []
        total = len(non_anchors) + (len(anchors) if return_anchors else 0)
        person = (jnp.asarray(references)[None], jnp.asarray(reference_mask)[None])
        caches = bool(len(anchors)) and len(non_anchors) > 0 and self._caches_anchors(spec, len(anchors), settings)
        if caches:  # the cache has one row for every evaluation, so its programs are for one number of steps
            params = replace(params, sigmas=params.sigmas[: settings.steps + 1])

        def call(
            parts: list[SampleRequest], spec: SamplerSpec, kv_cache: AnchorCache | None = None
        ) -> tuple[np.ndarray, AnchorCache | None]:
            whole = parts[0]
            for part in parts[1:]:
                whole = whole.followed_by(part)
            prompt = None if whole.prompt is None else jnp.asarray(whole.prompt)[None]
            inputs = SetInputs(*person, jnp.asarray(whole.expression)[None], jnp.asarray(whole.noise_ids)[None], prompt)
            sampled, kv_cache, finite = self._run(inputs, params, spec, kv_cache, tell)
            if not finite.all():
                raise SamplingError(_not_finite(settings))
            return sampled[0], kv_cache

        def add(sampled: UInt8[np.ndarray, "n S S 3"]) -> None:
            images.append(sampled)
            if progress:
                progress(sum(map(len, images)), total)

        kv_cache, beside = None, None
        if len(anchors) and (return_anchors or caches):
            of_anchors = replace(spec, anchors=len(anchors), pool="kept" if caches else "made")
            sampled, kv_cache = call([anchors] * self._devices, of_anchors)
            if return_anchors:
                add(sampled[: len(anchors)])
        if len(anchors) and not caches:  # the anchors are computed again beside every chunk
            beside, spec = anchors, replace(spec, anchors=len(anchors), first_decoded=len(anchors))
        else:
            spec = replace(spec, anchors=0, pool="given" if caches else "made")
        share = max(1, min(settings.chunk, -(-len(non_anchors) // self._devices)))
        for start in range(0, len(non_anchors), share * self._devices):
            # The last chunk is filled up with copies of its last image, which no other image reads.
            places = np.minimum(np.arange(start, start + share * self._devices), len(non_anchors) - 1)
            parts = [non_anchors.take(p) for p in np.split(places, self._devices)]
            if beside is not None:
                parts = [beside.followed_by(part) for part in parts]
            sampled, _ = call(parts, spec, kv_cache)
            add(sampled[: len(non_anchors) - start])
        return np.concatenate(images)

    def _caches_anchors(self, spec: SamplerSpec, anchors: int, settings: SamplingConfig) -> bool:
        if settings.kv_cache == "never":
            return False
        if spec.guidance_limited:  # its steps differ in branches, a cache has the same ones in all
            if settings.kv_cache == "always":
                raise ConfigError(
                    "cannot be combined with guidance_interval, whose steps differ in branches",
                    field="kv_cache",
                    found="always",
                )
            return False
        needed = kv_cache_bytes(self._config, replace(spec, anchors=anchors), settings.steps, self._item_bytes)
        return settings.kv_cache == "always" or needed <= KV_CACHE_SHARE * device_memory()

    def _run(
        self,
        inputs: SetInputs,
        params: SamplerParams,
        spec: SamplerSpec,
        kv_cache: AnchorCache | None,
        tell: Tell | None,
    ) -> tuple[Any, AnchorCache | None, Bool[np.ndarray, "1 E"]]:
        """One call, compiled if it is new: images, the KV cache if it is kept, and which images are finite.

        Raises:
            MemoryLimitError: it needs more memory than a device has, by XLA's account or by the device's.
        """
        arguments = (self.parameters, self.frozen_components, inputs, params, kv_cache)
        leaves, structure = jax.tree.flatten((inputs, params, kv_cache))
        key = (spec, structure, tuple((x.shape, x.dtype) for x in leaves))
        needed, available = 0, device_memory()
        try:
            if key not in self.compiled:
                lowered = self._program.lower(*arguments, spec=spec)  # type: ignore[attr-defined]
                self.compiled[key] = compile_telling(lowered, "the sampler", tell)
                self._needed[key] = program_bytes(self.compiled[key])
            needed = self._needed[key]
            if needed > available:
                raise MemoryLimitError(f"a call needs {needed / 2**30:.1f} GiB")
            images, kept, finite = self.compiled[key](*arguments)
            images, finite = jax.device_get((images, finite))
            return np.asarray(images), kept, np.asarray(finite)
        except (MemoryLimitError, jax.errors.JaxRuntimeError) as e:
            if not isinstance(e, MemoryLimitError) and not is_out_of_memory(e):
                raise
            raise MemoryLimitError(
                f"not enough memory: sampling {inputs.noise_ids.shape[1]} images at once needs "
                f"{needed / 2**30:.1f} GiB by the compiler's account, a device has {available / 2**30:.1f} GiB; lower "
                "chunk, anchors or consistency, or set kv_cache to 'never'"
            ) from e


def _not_finite(settings: SamplingConfig) -> str:
    """The message for images that are not finite; it names the settings that can be lowered."""
    raised = []
    for name in _STRENGTHS:
        value = getattr(settings, name)
        largest = max(value) if isinstance(value, tuple) else value
        replaced = settings.guidance is not None and name.startswith("guidance_")
        if largest is not None and largest > 1.0 and not replaced:
            raised.append(f"{name} (now {largest:g})")
    lower = f"lower {', '.join(raised)}, or the weight of a LoRA file" if raised else "lower the weight of a LoRA file"
    return (
        f"the model gave images that are not finite (NaN or infinite numbers); none is kept: {lower}; with the "
        "settings as trained, the checkpoint itself is diverged, or overflows in its train.compute_dtype: take an "
        "earlier checkpoint, or train in float32"
    )
