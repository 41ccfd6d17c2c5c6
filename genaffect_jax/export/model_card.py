"""What an exported folder says about itself: model card, and its licence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from genaffect_jax.config import SamplingDefaults
from genaffect_jax.export.trained import TrainedModel
from genaffect_jax.io.package_files import PACKAGE_PREFIX, assets
from genaffect_jax.io.weight_file import WeightDType
from genaffect_jax.version import __version__

PROJECT_LICENCE = "Apache-2.0"
OTHER_LICENCE = "other"


def licence_of(trained: TrainedModel) -> str:
    """The licence of the exported weights as an SPDX name, or `other` if a part of them may have its own."""
    if trained.run_dir.path.parent == assets():
        return PROJECT_LICENCE  # as everything in there
    model, encoders = trained.config.model, (trained.faces.identity, trained.faces.expression)
    foreign = model.transformer_weights or not model.autoencoder_weights.startswith(PACKAGE_PREFIX)
    licences = {encoder.licence for encoder in encoders if encoder is not None}
    return OTHER_LICENCE if foreign or not licences <= {PROJECT_LICENCE} else PROJECT_LICENCE


def own_settings(sampling: SamplingDefaults) -> dict[str, Any]:
    """The model's own settings as arguments of the exported pipeline."""
    values = dataclasses.asdict(sampling)
    del values["solver"]
    return {"num_inference_steps": values.pop("steps"), **values}


def unsupported_settings(sampling: SamplingDefaults, *, consistency: bool) -> list[str]:
    """A remark for each of the model's own settings that the exported code does not have.

    Args:
        sampling: the model's own settings.
        consistency: whether the exported code has consistent attention.
    """
    lost: dict[str, tuple[Any, Any]] = {"solver": (sampling.solver, "euler")}
    if not consistency:
        lost["consistency"] = (sampling.consistency, 0.0)
    return [
        f"not exported: {name} {own!r}, the model's own; the exported code samples with {name} {here!r} and warns of it"
        for name, (own, here) in lost.items()
        if own != here
    ]


def model_card(trained: TrainedModel, dtype: WeightDType, evidence: Mapping[str, Any]) -> str:
    """The README.md of an exported folder."""
    model, licence = trained.config.model, licence_of(trained)
    encoders = [e for e in (trained.faces.identity, trained.faces.expression) if e is not None]
    remarks = unsupported_settings(trained.config.sampling, consistency=True)
    words = "the 135 emotion words" if trained.prototypes is None else f"{len(trained.prototypes.vectors)} words"
    named = "" if dtype == "float32" else f", dtype=torch.{dtype}"  # else diffusers makes float32 of the files
    lines = [
        "---",
        f"license: {licence.lower()}",
        "library_name: diffusers",
        "pipeline_tag: image-to-image",
        "tags: [gen-affect, avatars, facial-expressions, modular-diffusers]",
        "---",
        "",
        f"# {trained.name}",
        "",
        f"One person, many expressions: {model.image_size}-px images of the person in a reference image with each",
        "expression of a list. A Gen-AFFECT model (arXiv 2508.09461) trained and exported with genaffect_jax",
        f"{__version__}, step {trained.step}, weights in {dtype}.",
        "",
        "```python",
        *([] if dtype == "float32" else ["import torch"]),
        "from diffusers import DiffusionPipeline",
        "",
        f"pipe = DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True{named})",
        "images = pipe(",
        '    "face.png",',
        '    "joy, anger:0.6, 0.5*fear + 0.5*surprise",',
        *(f"    {name}={value!r}," for name, value in own_settings(trained.config.sampling).items()),
        ").images",
        "```",
        "",
        "These settings are the model's own; they hold where none is given.",
        *[f"{remark[0].upper()}{remark[1:]}." for remark in remarks],
        "",
        "`DIR` is the path of this folder. The same steps are modular blocks: `ModularPipeline.from_pretrained(DIR,",
        f"trust_remote_code=True)`, then `load_components({named.removeprefix(', ')})`; its `blocks.doc` lists the",
        "settings.",
        *(["Without `dtype` diffusers makes float32 of the weights."] if named else []),
        "",
        "## Contents",
        "",
        "| part | what it is |",
        "|---|---|",
        f"| `transformer/` | SD3 transformer, {model.mmdit.num_layers} blocks of width {model.mmdit.width} |",
        "| `adapter/` | identity and expression projectors, both condition branches of every block |",
        "| `vae/`, `scheduler/` | autoencoder, flow-matching schedule |",
        f"| `expressions/` | {words} and the expression grammar's data |",
    ]
    lines += [f"| face encoder | {e.name}, licence: {e.licence} |" for e in encoders]
    lines += [
        "| `pipeline.py`, `genaffect_*.py` | the method in PyTorch, Apache-2.0 |",
        "| `check.py`, `parity.*` | compares PyTorch with what JAX computed: `python check.py` |",
        "",
        "## Licence",
        "",
    ]
    if licence == OTHER_LICENCE:
        lines += [
            f"Transformer: {model.transformer_weights or 'trained from scratch'}.",
            f"Autoencoder: {model.autoencoder_weights}.",
            "Their licences, and those of face encoders named above, apply to the weights. The code is Apache-2.0.",
        ]
    else:
        lines += ["Code and weights are Apache-2.0, unless the training data or a face encoder named above says other."]
    lines += [
        "",
        "## Limits",
        "",
        "Images are generated, not photos. The expression of a result can differ from the word; see the figures",
        "of the training run. Evidence: "
        + ", ".join(f"{case['name']} ({case['settings']['num_inference_steps']} steps)" for case in evidence["cases"])
        + ", float32.",
        "",
    ]
    return "\n".join(lines)
