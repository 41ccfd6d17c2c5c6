"""How a set is cut into calls of the program: the anchors first, all others in chunks beside them.

Anchors share among themselves, everybody else looks at the anchors, so a picture depends neither on the chunk it is
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
from genaffect_jax.inference.program import Bank, Controls, Kind, Program, SetInputs, bank_bytes
from genaffect_jax.models.functional import Parameters
from genaffect_jax.parallel.memory import device_memory, is_out_of_memory, program_bytes

# The largest share of a device's memory that the bank may take by itself: beside it lie the weights, one chunk's
# activations, and, while it is made, a second copy of it.
BANK_SHARE = 0.3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pictures:
    """Pictures to draw: what each shows and where its noise comes from."""

    expression: Float32[np.ndarray, "E W"]
    """Expression vectors."""
    items: Int32[np.ndarray, " E"]
    """Numbers that, with the seed, decide the noise."""
    prompt: Int32[np.ndarray, " E"] | None = None
    """Rows in the prompts, for models with a text stream."""

    def __len__(self) -> int:
        return len(self.items)

    def take(self, places: Int32[np.ndarray, " n"]) -> Pictures:
        """The pictures at these places."""
        prompt = None if self.prompt is None else self.prompt[places]
        return Pictures(self.expression[places], self.items[places], prompt)

    def beside(self, others: Pictures) -> Pictures:
        """These pictures, then others."""
        prompt = None
        if self.prompt is not None and others.prompt is not None:
            prompt = np.concatenate([self.prompt, others.prompt])
        return Pictures(
            np.concatenate([self.expression, others.expression]), np.concatenate([self.items, others.items]), prompt
        )


class SetDrawer:
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
        frozen: Mapping[str, Any],
        dtype: DType,
        devices: int,
    ) -> None:
        self._config, self._program, self._devices = config, program, devices
        self.parameters, self.frozen = parameters, frozen
        self._item_bytes = 2 if dtype == "bfloat16" else 4
        self.compiled: dict[Any, jax.stages.Compiled] = {}

    def draw(
        self,
        references: UInt8[np.ndarray, "R S S 3"],
        given: Bool[np.ndarray, " R"],
        anchors: Pictures,
        others: Pictures,
        kind: Kind,
        controls: Controls,
        settings: SamplingConfig,
        draw_anchors: bool,
        progress: Progress | None = None,
    ) -> UInt8[np.ndarray, "A+E S S 3"]:
        """The anchors' pictures (if asked for), then all others.

        Args:
            references, given: pictures of the person, and which of them are no padding.
            anchors: form the pool; none: all pictures are drawn apart.
            others: are drawn in chunks of `settings.chunk` on every device.
            kind: guidance, solver and shared tokens.
            controls: arguments of the program, for exactly `settings.steps` steps or padded.
            settings: chunk and bank; messages.
            draw_anchors: whether the anchors' own pictures are wanted.
            progress: called with (pictures done, pictures in all).

        Raises:
            ConfigError: a bank is forced where it cannot be.
            MemoryLimitError: a call needs more memory than a device has.
        """
        images: list[np.ndarray] = []
        total = len(others) + (len(anchors) if draw_anchors else 0)
        people, bank = (jnp.asarray(references)[None], jnp.asarray(given)[None]), None
        keeps = bool(len(anchors)) and len(others) > 0 and self._keeps_bank(kind, len(anchors), settings)

        if keeps:  # a bank has one row for every evaluation, so its programs are for one number of steps
            controls = replace(controls, sigmas=controls.sigmas[: settings.steps + 1])

        def call(parts: list[Pictures], kind: Kind, bank: Bank | None) -> tuple[np.ndarray, Bank | None]:
            whole = parts[0]
            for part in parts[1:]:
                whole = whole.beside(part)
            prompt = None if whole.prompt is None else jnp.asarray(whole.prompt)[None]
            inputs = SetInputs(*people, jnp.asarray(whole.expression)[None], jnp.asarray(whole.items)[None], prompt)
            drawn, kept = self._run(inputs, controls, kind, bank)
            return drawn[0], kept

        def add(drawn: UInt8[np.ndarray, "n S S 3"]) -> None:
            images.extend(drawn)
            if progress:
                progress(len(images), total)

        if len(anchors) and (draw_anchors or keeps):
            pool = replace(kind, anchors=len(anchors), pool="kept" if keeps else "made")
            drawn, bank = call([anchors] * self._devices, pool, None)
            if draw_anchors:
                add(drawn[: len(anchors)])
        if len(anchors) and not keeps:
            beside, kind = anchors, replace(kind, anchors=len(anchors), pictures_from=len(anchors))
        else:
            beside, kind = None, replace(kind, anchors=0, pool="given" if keeps else "made")
        share = max(1, min(settings.chunk, -(-len(others) // self._devices)))
        for start in range(0, len(others), share * self._devices):
            # The last chunk is filled up with its last picture: nobody looks at it.
            places = np.minimum(np.arange(start, start + share * self._devices), len(others) - 1)
            parts = [others.take(p) for p in np.split(places, self._devices)]
            if beside is not None:
                parts = [beside.beside(part) for part in parts]
            drawn, _ = call(parts, kind, bank)
            add(drawn[: len(others) - start])
        return np.stack(images)

    def _keeps_bank(self, kind: Kind, anchors: int, settings: SamplingConfig) -> bool:
        if settings.bank == "never":
            return False
        if kind.guidance_limited:  # other steps have other branches
            if settings.bank == "always":
                raise ConfigError(
                    "--bank always: not together with --guidance_interval, whose steps differ in branches"
                )
            return False
        needed = bank_bytes(self._config, replace(kind, anchors=anchors), settings.steps, self._item_bytes)
        return settings.bank == "always" or needed <= BANK_SHARE * device_memory()

    def _run(self, inputs: SetInputs, controls: Controls, kind: Kind, bank: Bank | None) -> tuple[Any, Bank | None]:
        """One call, compiled if it is new.

        Raises:
            MemoryLimitError: it needs more memory than there is, by XLA's account or by the device's.
        """
        arguments = (self.parameters, self.frozen, inputs, controls, bank)
        leaves, structure = jax.tree.flatten((inputs, controls, bank))
        key = (kind, structure, tuple((x.shape, x.dtype) for x in leaves))
        needed, there = 0, device_memory()
        try:
            if key not in self.compiled:
                self.compiled[key] = self._program.lower(*arguments, kind=kind).compile()  # type: ignore[attr-defined]
            needed = program_bytes(self.compiled[key])
            if needed > there:
                raise MemoryLimitError(f"a call needs {needed / 2**30:.1f} GiB")
            drawn, kept = self.compiled[key](*arguments)
            return np.asarray(jax.device_get(drawn)), kept
        except (MemoryLimitError, jax.errors.JaxRuntimeError) as e:
            if not isinstance(e, MemoryLimitError) and not is_out_of_memory(e):
                raise
            raise MemoryLimitError(
                f"not enough memory: drawing {inputs.items.shape[1]} pictures at once needs "
                f"{needed / 2**30:.1f} GiB by the compiler's account, a device has {there / 2**30:.1f} GiB; lower "
                "--chunk, --anchors or --consistency, or give --bank never"
            ) from e
