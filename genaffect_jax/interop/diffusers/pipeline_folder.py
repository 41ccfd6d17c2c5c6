"""Text encoder files and noise schedule of a diffusers `StableDiffusion3Pipeline` folder, read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers.folders import PIPELINE_FILE
from genaffect_jax.interop.diffusers.tensor_files import read_json
from genaffect_jax.interop.diffusers.weight_files import TRANSFORMERS_STEM, find_weights
from genaffect_jax.io.weight_file import unreadable

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
T5 = "text_encoder_3"
# Sets of files, each sufficient for a tokenizer.
_TOKENIZER_FILES = {
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "tokenizer_2": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "tokenizer_3": (("tokenizer.json",), ("spiece.model",)),
}


@dataclass(frozen=True)
class TextParts:
    """The text encoders of a pipeline folder.

    Attributes:
        folder: the pipeline's folder.
        t5: whether the pipeline has the third encoder (T5).
        width: width of a text token if the pipeline has no T5; else None.
        files: relative path to full path of every file that decides the embeddings.
    """

    folder: Path
    t5: bool
    width: int | None
    files: dict[str, Path]


def text_parts(folder: Path, variant: str | None = None) -> TextParts:
    """Finds the tokenizers and text encoders of a pipeline folder.

    Args:
        folder: the pipeline's folder. It may lack `model_index.json` if all three encoders are there.
        variant: variant of the encoders' weight files (`fp16`); None for the files without one.

    Raises:
        WeightsError: the folder, a part of it or a file is missing or cannot be read; the message names it.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder (a diffusers pipeline folder was expected)")
    index = _index(folder)
    t5 = _is_there(index, T5, folder)
    parts = ENCODERS if t5 else ENCODERS[:2]
    files: dict[str, Path] = {}
    for encoder in parts:
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        for part in (encoder, tokenizer):
            if not _is_there(index, part, folder):
                raise WeightsError(f"{folder / PIPELINE_FILE}: {part} is null, only {T5} may be")
            if not (folder / part).is_dir():
                raise WeightsError(f"{folder / part}: no such folder; the pipeline's {part} belongs there")
        found = [
            *_encoder_files(folder / encoder, variant),
            *_tokenizer_files(folder / tokenizer, _TOKENIZER_FILES[tokenizer]),
        ]
        files |= {path.relative_to(folder).as_posix(): path for path in found}
    if t5:
        return TextParts(folder, t5, None, files)
    transformer = folder / "transformer" / "config.json"
    width = read_json(transformer).get("joint_attention_dim")
    if not isinstance(width, int):
        raise WeightsError(f"{transformer}: joint_attention_dim={width!r}: must be a whole number")
    return TextParts(folder, t5, width, files | {"transformer/config.json": transformer})


def scheduler_shift(folder: Path) -> float:
    """The resolution shift of a pipeline's noise schedule, for `diffusion.schedule.euler_sigmas`.

    It is that of the scheduler's constructor. diffusers 0.42.1 does not save what `set_shift` changed, so a folder
    cannot show it; the schedule after it is not that of any constructor either (the ends of the range keep the old
    shift).

    Raises:
        WeightsError: `scheduler/scheduler_config.json` is missing or not readable, or describes another schedule than
            the flow-matching Euler schedule with a fixed shift.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    values = read_json(path)
    if values.get("_class_name") != "FlowMatchEulerDiscreteScheduler":
        raise WeightsError(
            f"{path}: _class_name={values.get('_class_name')!r}: must be FlowMatchEulerDiscreteScheduler"
        )
    needed = {"num_train_timesteps": 1000}
    for name in (
        "use_dynamic_shifting",
        "invert_sigmas",
        "shift_terminal",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "stochastic_sampling",
    ):
        needed[name] = False
    for name, value in needed.items():
        # Missing and null mean the constructor's default, which is off (or 1000).
        if (values.get(name) or value) != value:
            raise WeightsError(f"{path}: {name}={values[name]!r}: must be {value!r}")
    shift = values.get("shift", 1.0)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not shift > 0:
        raise WeightsError(f"{path}: shift={shift!r}: must be a positive number")
    return float(shift)


def _index(folder: Path) -> dict[str, Any]:
    """The content of `model_index.json`, or what the folders say in its place."""
    if (folder / PIPELINE_FILE).exists():
        return read_json(folder / PIPELINE_FILE)
    there = [part for part in ENCODERS if (folder / part).is_dir()]
    if tuple(there) == ENCODERS:
        return {part: True for encoder in ENCODERS for part in (encoder, encoder.replace("text_encoder", "tokenizer"))}
    # Without T5 its tokens are zeros, which gives other prompts: a download of some folders must not decide that.
    raise WeightsError(
        f"{folder / PIPELINE_FILE}: no such file, and of {', '.join(ENCODERS)} the folder has "
        f"{', '.join(there) or 'none'}: name the folder of a whole pipeline, or add the file or the folders"
    )


def _is_there(index: dict[str, Any], part: str, folder: Path) -> bool:
    if part not in index:
        raise WeightsError(f"{folder / PIPELINE_FILE}: has no entry {part!r}; is this an SD3 pipeline?")
    entry = index[part]
    return not (entry is None or entry == [None, None])


def _encoder_files(folder: Path, variant: str | None) -> list[Path]:
    config = folder / "config.json"
    read_json(config)
    found = find_weights(folder, TRANSFORMERS_STEM, variant)
    weights = [found]
    if found.suffix == ".json":
        shards = read_json(found).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            raise WeightsError(f"{found}: weight_map must map keys to files of the same folder")
        weights = [folder / name for name in sorted(set(shards.values()))]
    for path in weights:
        try:
            with safe_open(path, framework="np"):
                pass
        except FileNotFoundError as e:
            raise WeightsError(f"{path}: no such file, but {found.name} names it") from e
        except (SafetensorError, OSError) as e:
            raise unreadable(path, e) from e
    return [config, *weights, *([found] if weights != [found] else [])]


def _tokenizer_files(folder: Path, choices: tuple[tuple[str, ...], ...]) -> list[Path]:
    if not any(all((folder / name).is_file() for name in names) for names in choices):
        needed = " or ".join(" and ".join(names) for names in choices)
        raise WeightsError(f"{folder}: has no {needed}")
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
