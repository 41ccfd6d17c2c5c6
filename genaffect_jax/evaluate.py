"""`python -m genaffect_jax.evaluate`: measure a trained model on people that it has never seen.

    python -m genaffect_jax.evaluate --model out/avatar_tiny --out out/evaluation
    python -m genaffect_jax.evaluate --model out/mine --data folder:PHOTOS --out out/evaluation

A stopped evaluation is continued by the same command.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

from genaffect_jax import cli
from genaffect_jax.checkpoints.manager import LATEST
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import SamplingConfig
from genaffect_jax.config.file_name import FileName
from genaffect_jax.errors import INTERRUPTED, ConfigError, require
from genaffect_jax.evaluation import folder_people, procedural_people
from genaffect_jax.evaluation.ablations import PLAIN, Prepare, ablations_as_table, run_ablations, sampling_ablations
from genaffect_jax.evaluation.comparison import compare, read_report
from genaffect_jax.evaluation.diversity import Diversity
from genaffect_jax.evaluation.folder_people import align_for, open_folder_people
from genaffect_jax.evaluation.people import People
from genaffect_jax.evaluation.procedural_people import ProceduralPeople
from genaffect_jax.evaluation.protocol import DIAL_WORDS, Protocol
from genaffect_jax.evaluation.report import as_json, as_table, comparison_as_table, write_report
from genaffect_jax.evaluation.run import Cost, EvaluationRun, load_evaluators, run_evaluation
from genaffect_jax.evaluation.similarity import load_similarity_encoders
from genaffect_jax.evaluation.training_ablations import training_ablations
from genaffect_jax.io.package_files import DEFAULT_MODEL
from genaffect_jax.parallel.xla import use_compilation_cache
from genaffect_jax.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments:
    """What is measured, and on whom; the settings of sampling follow in `Arguments`."""

    out: Path
    """Folder for report.html, report.md, report.json and all readings; that of a stopped evaluation is continued."""
    model: Path = Path(DEFAULT_MODEL)
    """Run folder of a training, folder of a released model, or package:NAME. Default: the model of this package."""
    checkpoint: str = LATEST
    """Checkpoint to sample from: latest, best (by the loss on held-out people), or the number of a step."""
    data: FileName = "procedural"
    """People: `procedural` renders avatars; `folder:DIR` takes images in a folder, in the layouts of training folders.
    One image of each person is the reference, the labels of the others are asked for. People that the model was trained
    on are left out."""
    align: Literal["none", "face"] | None = None
    """Treatment of a folder's images: none takes the centre square; face detects the face and moves it to the place it
    has in aligned training images. Default: none for a folder that `python -m
    genaffect_jax.prepare photos` wrote, else as the model's training
    images were treated."""
    face_models: Path | None = None
    """Folder of an insightface model pack (.onnx files), or an insightface root with one pack; needed to align."""
    people: int = 64
    """People, at least 2; of a folder, at most that many."""
    expressions: int = 24
    """Words of each person, 2 to 135, spread over the 135; each person's begin one word later. Of a folder: the most
    images of a person."""
    dial_people: int = 8
    """People for whom dials are sampled too; 0 for none."""
    dial_words: tuple[str, ...] = DIAL_WORDS
    """Words of the dials, each at the intensities 0, 0.25 and so on to 1.5."""
    ablations: Literal["none", "sampling", "training", "all"] = "none"
    """Evaluate other settings too, each in a folder of its own below `out`, and compare them in ablations.html and
    ablations.md: `sampling`, thirteen settings of consistent attention, shared noise and guidance; `training`, five
    more models, each trained as this one with one thing changed, which takes as long as five trainings; `all`, both."""
    against: Path | None = None
    """Another evaluation's folder or report.json: differences with intervals, and which are beyond noise."""
    identity_evaluator: FileName = "package:identity_evaluator"
    """Encoder that judges the person: package:NAME or a weight file. Not one that the model is conditioned on."""
    expression_evaluator: FileName = "package:expression_evaluator"
    """Encoder that judges the expression: the same; for a folder also the .json of an ONNX encoder."""
    clip: Path | None = None
    """Folder of a CLIP model in the layout of transformers (config.json, safetensors, tokenizer, image processor):
    adds `clip_score`. Needs the extra `torch`."""
    dino: Path | None = None
    """Folder of a DINO, DINOv2 or DINOv3 vision transformer in the same layout: adds `dino_consistency`."""
    diversity_seeds: int = 4
    """Seeds under which some people are sampled, from `seed` on, at least 2; 0 for no figures of seeds."""
    diversity_people: int = 8
    """People that are sampled under these seeds, at most all; 0 for none."""


# Dataclasses take the fields of the last base first, and options are listed in that order.
@dataclass(frozen=True, kw_only=True)
class Arguments(SamplingConfig, EvaluationArguments):
    """Measure a trained model on people that it has never seen."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and evaluates; returns the exit status."""
    arguments = cli.parse_for_model(Arguments, argv)
    status = cli.run(lambda console: run(arguments, console))
    if status == INTERRUPTED:
        print("stopped; the same command continues", file=sys.stderr)
    return status


def run(arguments: Arguments, console: Console) -> bool:
    """Evaluates and writes the report.

    Raises:
        GenAffectError: see `Pipeline.load`, `load_evaluators`, `load_similarity_encoders` and `run_evaluation`.
    """
    protocol = Protocol(*(getattr(arguments, f.name) for f in dataclasses.fields(Protocol)))
    sampling = SamplingConfig(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(SamplingConfig)})
    if arguments.ablations != "none" and arguments.against is not None:
        raise ConfigError("compares one evaluation; leave it out, or ablations", field="against")
    other = None if arguments.against is None else read_report(arguments.against)
    folder = folder_of(arguments.data, arguments.out)
    if folder is None and arguments.align is not None:
        raise ConfigError("is for images in a folder; leave it out", field="align", found=arguments.align)
    align = "none" if folder is None else align_for(folder, arguments.align)  # rendered faces are in place
    wanted = arguments.diversity_people, arguments.diversity_seeds
    diversity = Diversity(*wanted) if all(wanted) else None
    similarity = load_similarity_encoders(arguments.clip, arguments.dino)
    use_compilation_cache()
    load = partial(Pipeline.load, align=align, face_models=arguments.face_models)
    pipeline = load(arguments.model, checkpoint=arguments.checkpoint)
    evaluators = load_evaluators(
        pipeline, arguments.identity_evaluator, arguments.expression_evaluator, any_vectors=folder is not None
    )
    people: People = (
        ProceduralPeople(protocol)
        if folder is None
        else open_folder_people(folder, protocol, pipeline, RunDir.of_model(arguments.model))
    )
    run = EvaluationRun(pipeline, people, sampling, evaluators, similarity, diversity)
    console.print(f"model {pipeline.name}", soft_wrap=True, highlight=False)
    console.print(people.describe(), soft_wrap=True, highlight=False, markup=False)
    if arguments.ablations != "none":
        console.print(ablations_as_table(run_ablations(_ablations(arguments, run, load, console), arguments.out)))
        console.print(f"{arguments.out}: ablations.html, ablations.md, and a report for each setting", soft_wrap=True)
        return True
    evaluation = run_evaluation(run, arguments.out)
    against = None if other is None else compare(as_json(evaluation, run.settings), other, sampling.seed)
    write_report(evaluation, run.settings, arguments.out, against)
    console.print(as_table(evaluation))
    if against is not None:
        console.print(comparison_as_table(against))
    console.print(Cost.read(arguments.out).describe(), highlight=False)
    console.print(f"{arguments.out}: report.html, report.md, report.json", soft_wrap=True)
    return True


def _ablations(
    arguments: Arguments, run: EvaluationRun, load: Callable[[Path], Pipeline], console: Console
) -> dict[str, Prepare]:
    sampling, chosen = sampling_ablations(run), arguments.ablations
    runs = sampling if chosen != "training" else {PLAIN: sampling[PLAIN]}
    if chosen == "sampling":
        return runs
    return runs | training_ablations(run, arguments.model, arguments.out, load, console)


def folder_of(data: str, out: Path) -> Path | None:
    """The folder that the option `data` names; None for procedural people.

    Raises:
        ConfigError: it names neither, the folder does not exist, or `out` lies in it.
    """
    kind, colon, name = data.partition(":")
    if data == procedural_people.SOURCE:
        return None
    require(kind == folder_people.SOURCE and bool(colon and name), "data", data, "must be procedural or folder:DIR")
    folder = Path(name)
    require(folder.is_dir(), "data", data, "not a folder" if folder.exists() else "no such folder")
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise ConfigError(f"lies in {folder}, whose images its sheets would become part of", field="out", found=out)
    return folder


if __name__ == "__main__":
    sys.exit(main())
