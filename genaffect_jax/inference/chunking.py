"""How a set is cut into calls of the program: the anchors first, all others in chunks beside them.

Anchors share among themselves, everybody else looks at the anchors, so an image depends neither on the chunk it is
drawn in nor on the number of devices, and memory does not grow with the set.
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
from genaffect_jax.errors import ConfigError, MemoryLimitError
from genaffect_jax.inference.program import AnchorCache, Program, SamplerParams, SamplerSpec, SetInputs, kv_cache_bytes
from genaffect_jax.models.functional import Parameters
from genaffect_jax.parallel.memory import device_memory, is_out_of_memory, program_bytes

# The largest share of a device's memory that the bank may take by itself: beside it lie the weights, one chunk's
# activations, and, while it is made, a second copy of it.
KV_CACHE_SHARE = 0.3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SampleRequest:
    """Images to draw: what each shows and where its noise comes from."""

    expression: Float32[np.ndarray, "E W"]
    """Expression vectors."""
    noise_ids: Int32[np.ndarray, " E"]
    """Numbers that, with the seed, decide the noise."""
    prompt: Int32[np.ndarray, " E"] | None = None
    """Rows in the prompts, for models with a text stream."""

    def __len__(self) -> int:
        return len(self.noise_ids)

    def take(self, places: Int32[np.ndarray, " n"]) -> SampleRequest:
        """The images at these places."""
        prompt = None if self.prompt is None else self.prompt[places]
        return SampleRequest(self.expression[places], self.noise_ids[places], prompt)

    def beside(self, others: SampleRequest) -> SampleRequest:
        """These images, then others."""
        prompt = None
        if self.prompt is not None and others.prompt is not None:
            prompt = np.concatenate([self.prompt, others.prompt])
        return SampleRequest(
            np.concatenate([self.expression, others.expression]),
            np.concatenate([self.noise_ids, others.noise_ids]),
            prompt,
        )


class SetSampler:
    """Draws sets with one model.

    Args:
        config: sizes.
        program: what `inference.program.make_program` built.
        parameters, frozen: its first two arguments.
        dtype: type of activations.
        devices: devices of the program's mesh.

    Attributes:
        parameters, frozen: what the program reads.
        compiled: the programs compiled so far, by kind and shapes.
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

    def draw(
        self,
        references: UInt8[np.ndarray, "R S S 3"],
        given: Bool[np.ndarray, " R"],
        anchors: SampleRequest,
        non_anchors: SampleRequest,
        spec: SamplerSpec,
        params: SamplerParams,
        settings: SamplingConfig,
        draw_anchors: bool,
        progress: Progress | None = None,
    ) -> UInt8[np.ndarray, "A+E S S 3"]:
        """The anchors' images (if asked for), then all others.

        Args:
            references, given: images of the person, and which of them are no padding.
            anchors: form the pool; none: all images are drawn apart.
            others: are drawn in chunks of `settings.chunk` on every device.
            kind: guidance, solver and shared tokens.
            controls: arguments of the program, for exactly `settings.steps` steps or padded.
            settings: chunk and bank; messages.
            draw_anchors: whether the anchors' own images are wanted.
            progress: called with (images done, images in all).

        Raises:
            ConfigError: a bank is forced where it cannot be.
            MemoryLimitError: a call needs more memory than a device has.
        """
        images: list[np.ndarray] = []
        total = len(non_anchors) + (len(anchors) if draw_anchors else 0)
        people, kv_cache = (jnp.asarray(references)[None], jnp.asarray(given)[None]), None
        keeps = bool(len(anchors)) and len(non_anchors) > 0 and self._keeps_kv_cache(spec, len(anchors), settings)

        if keeps:  # a bank has one row for every evaluation, so its programs are for one number of steps
            params = replace(params, sigmas=params.sigmas[: settings.steps + 1])

        def call(
            parts: list[SampleRequest], spec: SamplerSpec, kv_cache: AnchorCache | None
        ) -> tuple[np.ndarray, AnchorCache | None]:
            whole = parts[0]
            for part in parts[1:]:
                whole = whole.beside(part)
            prompt = None if whole.prompt is None else jnp.asarray(whole.prompt)[None]
            inputs = SetInputs(*people, jnp.asarray(whole.expression)[None], jnp.asarray(whole.noise_ids)[None], prompt)
            drawn, kept = self._run(inputs, params, spec, kv_cache)
            return drawn[0], kept

        def add(drawn: UInt8[np.ndarray, "n S S 3"]) -> None:
            images.extend(drawn)
            if progress:
                progress(len(images), total)

        if len(anchors) and (draw_anchors or keeps):
            pool = replace(spec, anchors=len(anchors), pool="kept" if keeps else "made")
            drawn, kv_cache = call([anchors] * self._devices, pool, None)
            if draw_anchors:
                add(drawn[: len(anchors)])
        if len(anchors) and not keeps:
            beside, spec = anchors, replace(spec, anchors=len(anchors), first_decoded=len(anchors))
        else:
            beside, spec = None, replace(spec, anchors=0, pool="given" if keeps else "made")
        share = max(1, min(settings.chunk, -(-len(non_anchors) // self._devices)))
        for start in range(0, len(non_anchors), share * self._devices):
            # The last chunk is filled up with its last image: nobody looks at it.
            places = np.minimum(np.arange(start, start + share * self._devices), len(non_anchors) - 1)
            parts = [non_anchors.take(p) for p in np.split(places, self._devices)]
            if beside is not None:
                parts = [beside.beside(part) for part in parts]
            drawn, _ = call(parts, spec, kv_cache)
            add(drawn[: len(non_anchors) - start])
        return np.stack(images)

    def _keeps_kv_cache(self, spec: SamplerSpec, anchors: int, settings: SamplingConfig) -> bool:
        if settings.kv_cache == "never":
            return False
        if spec.guidance_limited:  # other steps have other branches
            if settings.kv_cache == "always":
                raise ConfigError(
                    "--kv_cache always: not together with --guidance_interval, whose steps differ in branches"
                )
            return False
        needed = kv_cache_bytes(self._config, replace(spec, anchors=anchors), settings.steps, self._item_bytes)
        return settings.kv_cache == "always" or needed <= KV_CACHE_SHARE * device_memory()

    def _run(
        self, inputs: SetInputs, params: SamplerParams, spec: SamplerSpec, kv_cache: AnchorCache | None
    ) -> tuple[Any, AnchorCache | None]:
        """One call, compiled if it is new.

        Raises:
            MemoryLimitError: it needs more memory than there is, by XLA's account or by the device's.
        """
        arguments = (self.parameters, self.frozen_components, inputs, params, kv_cache)
        leaves, structure = jax.tree.flatten((inputs, params, kv_cache))
        key = (spec, structure, tuple((x.shape, x.dtype) for x in leaves))
        needed, there = 0, device_memory()
        try:
            if key not in self.compiled:
                self.compiled[key] = self._program.lower(*arguments, spec=spec).compile()  # type: ignore[attr-defined]
            needed = program_bytes(self.compiled[key])
            if needed > there:
                raise MemoryLimitError(f"a call needs {needed / 2**30:.1f} GiB")
            drawn, kept = self.compiled[key](*arguments)
            return np.asarray(jax.device_get(drawn)), kept
        except (MemoryLimitError, jax.errors.JaxRuntimeError) as e:
            if not isinstance(e, MemoryLimitError) and not is_out_of_memory(e):
                raise
            raise MemoryLimitError(
                f"not enough memory: drawing {inputs.noise_ids.shape[1]} images at once needs "
                f"{needed / 2**30:.1f} GiB by the compiler's account, a device has {there / 2**30:.1f} GiB; lower "
                "--chunk, --anchors or --consistency, or give --kv_cache never"
            ) from e
