"""CLIP and DINO from local folders in the layout of transformers, for figures of an evaluation (extra `torch`).

A folder holds `config.json`, weights as safetensors and the files of its processor, as `save_pretrained` writes them.
Nothing is downloaded, no pickle is read and no code of a folder is run. Computation is float32 on the processor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from genaffect_jax.errors import ConfigError, WeightsError, install_command, listed
from genaffect_jax.interop.diffusers.weight_files import TRANSFORMERS_STEM, variants, whole_name
from genaffect_jax.io.weight_file import checksum

try:
    import torch
    import transformers
    from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPTokenizer
except ImportError as e:
    raise ImportError(
        f"CLIP and DINO need PyTorch and transformers ({e}); install the extra: {install_command('torch')}"
    ) from e

DINO_MODELS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""Kinds of vision transformers whose class token is used; DINO's own first models are of kind `vit`."""
_CLIP = "clip"
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_BATCH = 16  # images of one forward pass
# What a processor does to an image, as far as it decides embeddings.
_STEPS = {
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}


class DinoEncoder:
    """A DINO, DINOv2 or DINOv3 vision transformer; an image's embedding is its class token after the last norm.

    Args:
        folder: of the model and its image processor.

    Raises:
        ConfigError: there is no such folder, or it holds another network.
        WeightsError: a file is missing or damaged, or the weights do not fit `config.json`.

    Attributes:
        description: network, checksum of its weights and preprocessing.
    """

    def __init__(self, folder: Path) -> None:
        _check(folder, "dino", DINO_MODELS)
        self._processor = _image_processor(folder)
        # Not every release has a pooler; the class token is taken before it.
        self._model = _load(AutoModel, folder, unused=("pooler.",))
        self.description = _describe(self._model, folder, self._processor)

    def images(self, images: UInt8[np.ndarray, "B S S 3"]) -> Float32[np.ndarray, "B E"]:
        """Unit vectors of images."""
        return _embed(images, self._processor, lambda pixels: self._model(pixel_values=pixels).last_hidden_state[:, 0])


class ClipEncoder:
    """A CLIP model, which embeds images and texts in one space.

    Args:
        folder: of the model, its tokenizer and its image processor.

    Raises:
        ConfigError: there is no such folder, or it holds another network.
        WeightsError: a file is missing or damaged, or the weights do not fit `config.json`.

    Attributes:
        description: network, checksum of its weights and preprocessing.
    """

    def __init__(self, folder: Path) -> None:
        _check(folder, "clip", (_CLIP,))
        if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZER):
            raise WeightsError(f"{folder}: no tokenizer; put tokenizer.json, or vocab.json and merges.txt, there")
        self._processor = _image_processor(folder)
        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as e:  # tokenizers raises plain Exception for a file that it cannot read
            raise WeightsError(f"{folder}: its tokenizer is not readable as a CLIPTokenizer ({_first_line(e)})") from e
        self._model = _load(CLIPModel, folder)
        self.description = _describe(self._model, folder, self._processor)

    def images(self, images: UInt8[np.ndarray, "B S S 3"]) -> Float32[np.ndarray, "B E"]:
        """Unit vectors of images."""
        model = self._model
        return _embed(
            images, self._processor, lambda pixels: model.visual_projection(model.vision_model(pixels).pooler_output)
        )

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "K E"]:
        """Unit vectors of texts; what a text has beyond the length of CLIP is cut."""
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        hidden = self._model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return _unit(self._model.text_projection(hidden.pooler_output))


def _check(folder: Path, option: str, kinds: Sequence[str]) -> None:
    """Refuses a folder without safetensors, or whose model is of another kind."""
    if not folder.is_dir():
        raise ConfigError("no such folder; it holds config.json and model.safetensors", field=option, found=folder)
    file = folder / "config.json"
    try:
        kind = json.loads(file.read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise WeightsError(f"{file}: not readable as a model's configuration ({type(e).__name__}: {e})") from e
    if kind not in kinds:
        raise ConfigError(f"holds a model of type {kind}, must be {' or '.join(kinds)}", field=option, found=folder)
    if not _weight_files(folder):
        if there := variants([path.name for path in folder.iterdir()], TRANSFORMERS_STEM):
            raise WeightsError(
                f"{folder}: its weights are there as the variant {' or '.join(there)} alone; files without a variant "
                f"are read, so save or rename the one to use as {whole_name(TRANSFORMERS_STEM)}"
            )
        raise WeightsError(
            f"{folder}: no {' or '.join(_WEIGHTS)}; other formats are not read: save the model as safetensors"
        )


def _image_processor(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in _PROCESSOR):
        raise WeightsError(f"{folder}: no image processor; put the model's {_PROCESSOR[0]} there")
    # Resized by Pillow where there is a choice: what is measured does not depend on whether torchvision is installed.
    old = int(transformers.__version__.split(".")[0]) < 5
    choice: dict[str, Any] = {"use_fast": False} if old else {"backend": "pil"}
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **choice)
    except (ImportError, OSError, ValueError, TypeError, KeyError) as e:
        if "torchvision" in str(e).lower():  # DINOv3's has no other way
            raise WeightsError(f"{folder}: its image processor needs torchvision: pip install torchvision") from e
        raise WeightsError(f"{folder}: its image processor is not readable ({_first_line(e)})") from e


def _load(kind: Any, folder: Path, unused: tuple[str, ...] = ()) -> Any:
    """The model in float32; names that begin with `unused` may be missing in the file."""
    try:
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report lists them too, so that one error can name all
        )
    except Exception as e:  # safetensors raises an Exception of its own for a damaged file
        raise WeightsError(f"{folder}: not readable as a {kind.__name__} ({_first_line(e)})") from e
    problems = [f"missing {key}" for key in sorted(report["missing_keys"]) if not key.startswith(unused or "\0")]
    problems += [
        f"{key} has shape {tuple(found)}, must be {tuple(needed)}"
        for key, found, needed in sorted(report["mismatched_keys"])
    ]
    if problems:
        raise WeightsError(f"{folder}: the weights do not fit config.json: " + listed(problems))
    return model.eval()


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))


def _checksum(files: Sequence[Path]) -> str:
    """SHA-256 of the file; of several files, of their checksums in order."""
    each = [checksum(file) for file in files]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def _describe(model: Any, folder: Path, processor: Any) -> str:
    vision = getattr(model.config, "vision_config", model.config)
    size = f"width {vision.hidden_size}, patch {vision.patch_size}"
    return f"{type(model).__name__} {_checksum(_weight_files(folder))[:12]} ({size}; {_preprocessing(processor)})"


def _preprocessing(processor: Any) -> str:
    """The steps that are on, with their numbers."""
    settings = processor.to_dict()
    steps = [
        f"{step.removeprefix('do_')} {' '.join(_written(name, settings[name]) for name in names)}"
        for step, names in _STEPS.items()
        if settings.get(step)
    ]
    name = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")  # versions of transformers name it so
    return f"{name}: {', '.join(steps)}"


def _written(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{key}={number}" for key, number in sorted(value.items()) if number is not None)
    if isinstance(value, (list, tuple)):
        return "/".join(f"{number:g}" for number in value)
    return Image.Resampling(value).name.lower() if name == "resample" else f"{value:g}"


@torch.inference_mode()
def _embed(images: UInt8[np.ndarray, "B S S 3"], processor: Any, network: Any) -> Float32[np.ndarray, "B E"]:
    return np.concatenate([
        _unit(network(processor(images=part, return_tensors="pt")["pixel_values"])) for part in _batches(images)
    ])  # fmt: skip


def _batches(images: UInt8[np.ndarray, "B S S 3"]) -> Iterator[list[Image.Image]]:
    for first in range(0, len(images), _BATCH):
        yield [Image.fromarray(image) for image in images[first : first + _BATCH]]


def _unit(vectors: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vectors.float(), dim=-1).numpy()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
