"""The PyTorch form of a model as three ONNX graphs, by torch's exporter; signatures in `interop.onnx.signatures`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn

from genaffect_jax.interop.diffusers.adapter import FOLDER as ADAPTER
from genaffect_jax.interop.onnx.signatures import Signature
from genaffect_jax.interop.torch.genaffect_faces import GenAffectFaceEncoder
from genaffect_jax.interop.torch.genaffect_modeling import GenAffectAdapter
from genaffect_jax.models.genaffect import SMALLEST_SIGMA

# Lengths of the free axes while a graph is traced. They differ, and none is 1, so that no two become one.
_TRACED = {"R": 4, "E": 3, "G": 2, "B": 6, "K": 7, "T": 5}


class ConditionsGraph(nn.Module):
    """References, expression vectors and dropped conditions to the keys and values of all blocks."""

    def __init__(
        self,
        vae: AutoencoderKL,
        adapter: GenAffectAdapter,
        positions: Tensor,
        identity_encoder: GenAffectFaceEncoder | None,
    ) -> None:
        super().__init__()
        self.vae, self.adapter, self.identity_encoder = vae, adapter, identity_encoder
        self.register_buffer("positions", positions)

    def forward(
        self, references: Tensor, vectors: Tensor, drop_identity: Tensor, drop_expression: Tensor
    ) -> tuple[Tensor, ...]:
        config = self.vae.config
        latents = (self.vae.encode(references).latent_dist.mode() - (config.shift_factor or 0)) * config.scaling_factor
        face = None if self.identity_encoder is None else self.identity_encoder(references)[None]
        # One person: tokens are made once, and the groups differ only in which of them are null.
        pairs = self.adapter(
            latents[None], self.positions, vectors[None], face, drop_identity, drop_expression[:, None]
        )
        return tuple(torch.stack([pair[branch][part] for pair in pairs]) for branch in (0, 1) for part in (0, 1))


class DenoiserGraph(nn.Module):
    """One evaluation: noisy latents, noise levels, keys and values to velocities."""

    def __init__(self, transformer: SD3Transformer2DModel, adapter: GenAffectAdapter) -> None:
        super().__init__()
        self.transformer, self.predicts_x0 = transformer, adapter.config.prediction == "x0"
        adapter.attach(transformer)
        registers = adapter.config.register_tokens
        self.has_registers = registers > 0
        if registers:
            # What does not depend on an input is computed here: the text tokens and the pooled vector.
            embedders = transformer.time_text_embed
            with torch.no_grad():
                pooled = embedders.text_embedder(torch.zeros(1, transformer.config.pooled_projection_dim))
                self.register_buffer("text", transformer.context_embedder(torch.eye(registers)))
            self.register_buffer("pooled", pooled)
            transformer.context_embedder, embedders.text_embedder = nn.Identity(), nn.Identity()

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        identity_keys: Tensor,
        identity_values: Tensor,
        expression_keys: Tensor,
        expression_values: Tensor,
        identity_scale: Tensor,
        expression_scale: Tensor,
        text: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        processors = [block.attn.processor for block in self.transformer.transformer_blocks]
        for i, processor in enumerate(processors):
            processor.identity = identity_keys[i], identity_values[i]
            processor.expression = expression_keys[i], expression_values[i]
            processor.identity_scale, processor.expression_scale = identity_scale[i], expression_scale[i]
        if self.has_registers:
            text, pooled = self.text.expand(latents.shape[0], -1, -1), self.pooled
        found = self.transformer(latents, text, pooled, 1000 * sigma, return_dict=False)[0]
        for processor in processors:  # tensors of a trace may not outlive it
            processor.identity = processor.expression = processor.identity_scale = processor.expression_scale = None
        if self.predicts_x0:
            found = (latents - found) / sigma.clamp(min=SMALLEST_SIGMA)[:, None, None, None]
        return found


class DecoderGraph(nn.Module):
    """Latents to images in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        unscaled = latents / config.scaling_factor + (config.shift_factor or 0)
        return self.vae.decode(unscaled, return_dict=False)[0].clamp(-1, 1)


def write_graphs(
    components: Path, out: Path, signatures: Mapping[str, Signature], opset: int, external_above: int
) -> None:
    """Writes `conditions.onnx`, `denoiser.onnx` and `decoder.onnx`.

    Args:
        components: folder of `export diffusers`, in float32: transformer, adapter, vae and, for models that have one,
            identity_encoder.
        out: existing folder to write to.
        signatures: see `interop.onnx.signatures`.
        opset: version of the ONNX operators.
        external_above: size in bytes of a graph's weights from which they are stored in a file of their own,
            `<graph>.onnx.data`. A file of protocol buffers holds at most 2 GiB.
    """

    def load(kind: Any, name: str) -> Any:
        return kind.from_pretrained(components / name).eval().requires_grad_(False)

    vae, adapter = load(AutoencoderKL, "vae"), load(GenAffectAdapter, ADAPTER)
    transformer = load(SD3Transformer2DModel, "transformer")
    faces = components / "identity_encoder"
    side = transformer.config.sample_size
    # One after the other: a traced graph is as large as its weights.
    modules: dict[str, Callable[[], nn.Module]] = {
        "conditions": lambda: ConditionsGraph(
            vae,
            adapter,
            transformer.pos_embed.cropped_pos_embed(side, side),
            load(GenAffectFaceEncoder, faces.name) if faces.is_dir() else None,
        ),
        "denoiser": lambda: DenoiserGraph(transformer, adapter),
        "decoder": lambda: DecoderGraph(vae),
    }
    for name, make in modules.items():
        _write_graph(make().eval(), signatures[name], out / f"{name}.onnx", opset, external_above)


def _write_graph(module: nn.Module, signature: Signature, path: Path, opset: int, external_above: int) -> None:
    shapes = [[_TRACED.get(n, n) if isinstance(n, str) else n for n in tensor.shape] for tensor in signature.inputs]
    given = tuple(
        torch.zeros(shape, dtype=getattr(torch, tensor.dtype))
        for shape, tensor in zip(shapes, signature.inputs, strict=True)
    )
    free = tuple({i: n for i, n in enumerate(t.shape) if isinstance(n, str)} for t in signature.inputs)
    with _quiet(), torch.no_grad():
        traced = torch.export.export(
            module,
            given,
            dynamic_shapes=tuple(dict.fromkeys(names, torch.export.Dim.DYNAMIC) for names in free),
            # B = G * E is a condition between inputs, and none that is checked when the graph runs.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        program = torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[tensor.name for tensor in signature.inputs],
            output_names=[tensor.name for tensor in signature.outputs],
            dynamic_shapes=free,
        )
    assert program is not None  # it is with dynamo
    # The exporter notes for every node where in which file of this machine it comes from.
    for part in (program.model.graph, *program.model.graph.all_nodes()):
        part.metadata_props.clear()
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    program.save(path, external_data=size > external_above)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about torchvision, about axes that share a name and about what it cannot fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*axis name.*", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
