"""CLIP-L, CLIP-G and T5 of an SD3 pipeline folder; the only module that needs PyTorch (extra `torch`).

The output equals that of diffusers' `StableDiffusion3Pipeline.encode_prompt` (arXiv 2403.03206, section 4). The tokens
are the concatenated penultimate hidden states of both CLIP encoders, padded with zeros to T5's width, followed by T5's
tokens. The pooled embedding is the concatenation of both CLIP encoders' pooled embeddings.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float

from genaffect_jax.errors import ConfigError, WeightsError, install_command, listed
from genaffect_jax.interop.diffusers.pipeline_folder import ENCODERS, T5, text_parts
from genaffect_jax.io.weight_file import WeightDType

try:
    import torch
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast
except ImportError as e:
    raise ImportError(
        f"text encoders need PyTorch and transformers ({e}); install the extra: {install_command('torch')}"
    ) from e


class TextEncoders:
    """The text encoders of one pipeline folder.

    Args:
        folder: a diffusers pipeline folder; nothing is downloaded and no pickle is read.
        max_sequence_length: tokens of T5; longer prompts are truncated with a warning.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: type of the weights, the computation and the result.
        variant: variant of the weight files (`fp16`); None for the files without one.

    Raises:
        WeightsError: a folder or file is missing or damaged, or its weights do not fit its configuration.
        ConfigError: there is no such device.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_sequence_length: int,
        device: str = "cpu",
        dtype: WeightDType = "float32",
        variant: str | None = None,
    ) -> None:
        parts = text_parts(folder, variant)
        self._variant = variant
        self._width = parts.width
        self._max_sequence_length = max_sequence_length
        self._dtype: torch.dtype = getattr(torch, dtype)
        try:
            self._device = torch.device(device)
            torch.empty(0, device=self._device)
        except (RuntimeError, AssertionError) as e:
            raise ConfigError(f"PyTorch cannot use it ({str(e).splitlines()[0]})", field="device", found=device) from e
        self._tokenizers: dict[str, Any] = {}
        self._models: dict[str, Any] = {}
        for name in ENCODERS if parts.t5 else ENCODERS[:2]:
            tokenizer = folder / name.replace("text_encoder", "tokenizer")
            kinds = (T5TokenizerFast, T5EncoderModel) if name == T5 else (CLIPTokenizer, CLIPTextModelWithProjection)
            try:
                self._tokenizers[name] = kinds[0].from_pretrained(tokenizer, local_files_only=True)
            except Exception as e:  # tokenizers raises plain Exception for a file that it cannot read
                raise WeightsError(f"{tokenizer}: not readable as a {kinds[0].__name__} ({e})") from e
            self._models[name] = self._load(kinds[1], folder / name)
        if self._width is None:
            self._width = int(self._models[T5].config.d_model)
        # As in diffusers, the first tokenizer decides the number of tokens of both CLIP encoders.
        self._clip_length = int(self._tokenizers[ENCODERS[0]].model_max_length)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> tuple[Float[np.ndarray, "P T C"], Float[np.ndarray, "P D"]]:
        """Text tokens and pooled embeddings of a batch of prompts; T is CLIP's length plus T5's.

        Without T5, its tokens are zeros, as in diffusers.
        """
        hidden, pooled = [], []
        for name in ENCODERS[:2]:
            output = self._models[name](self._ids(name, prompts, self._clip_length), output_hidden_states=True)
            hidden.append(output.hidden_states[-2].to(self._dtype))
            pooled.append(output.text_embeds.to(self._dtype))
        clip = torch.cat(hidden, -1)
        missing = (self._width or 0) - clip.shape[-1]
        if missing < 0:
            raise WeightsError(f"text tokens: CLIP's are {clip.shape[-1]} wide, the model's only {self._width}")
        clip = torch.nn.functional.pad(clip, (0, missing))
        if T5 in self._models:
            t5 = self._models[T5](self._ids(T5, prompts, self._max_sequence_length))[0].to(self._dtype)
        else:
            t5 = clip.new_zeros(len(prompts), self._max_sequence_length, clip.shape[-1])
        return _to_numpy(torch.cat([clip, t5], 1)), _to_numpy(torch.cat(pooled, -1))

    def _ids(self, name: str, prompts: Sequence[str], length: int) -> torch.Tensor:
        tokenizer = self._tokenizers[name]
        ids = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        for prompt, whole in zip(prompts, tokenizer(list(prompts)).input_ids, strict=True):
            if len(whole) > length:
                warnings.warn(f"prompt {prompt!r}: {len(whole)} tokens for {name}, cut to {length}", stacklevel=4)
        return ids.input_ids.to(self._device)

    def _load(self, kind: Any, folder: Path) -> Any:
        try:
            model, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant=self._variant,
                dtype=self._dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report lists them too, so that one error can name all
            )
        except (OSError, ValueError, RuntimeError) as e:
            raise WeightsError(f"{folder}: not readable as a {kind.__name__} ({e})") from e
        problems = [f"missing {key}" for key in sorted(report["missing_keys"])]
        problems += [f"unknown {key}" for key in sorted(report["unexpected_keys"])]
        problems += [
            f"{key} has shape {tuple(found)}, must be {tuple(needed)}"
            for key, found, needed in sorted(report["mismatched_keys"])
        ]
        if problems:
            raise WeightsError(f"{folder}: the weights do not fit config.json: " + listed(problems))
        return model.to(self._device)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.contiguous().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has no such type of its own
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
