"""`python -m genaffect_jax.compile_check`: compile a preset for TPUs that you do not have, and report whether it fits.

    python -m genaffect_jax.compile_check --config configs/sd35_medium.py --topology v5e:4x4 --mesh.fsdp 16 \\
        --train.trainable everything --train.batch_size 64

The programs are the training step and the sampler as they run, compiled for all chips of the topology. No weights,
images or prompts are read, and nothing is executed. Needs the extra `tpu`. Exit status: 0 if every program fits, 1 if
one does not, 2 for wrong arguments.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_type_hints

import jax
import tyro
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from genaffect_jax import cli
from genaffect_jax.compile_check.report import ATTAINABLE, ProgramReport, compile_and_report, in_words
from genaffect_jax.compile_check.sampler import lower_sampler, sampler_flops
from genaffect_jax.compile_check.topology import topology_devices
from genaffect_jax.compile_check.train_step import lower_train_step, trained_share
from genaffect_jax.config import DenoiserRun, GuidanceMode
from genaffect_jax.config.numbers import LARGEST_SIZE, require_usable_numbers
from genaffect_jax.errors import COMPLETE, FAILED, ConfigError, GenAffectError, require
from genaffect_jax.inference.program import SamplerSpec
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.output import PlainConsole
from genaffect_jax.models.flops import step_flops
from genaffect_jax.parallel.chips import Chip
from genaffect_jax.parallel.mesh import make_mesh

Run = TypeVar("Run")


@dataclass(frozen=True)
class Arguments(Generic[Run]):
    """Compile a preset's training step and sampler for TPUs that you do not have."""

    topology: str
    """Kind of chip and number of chips along each axis: v5e:4x4, v5p:2x2x2, v6e:4x4."""
    config: Path
    """Preset: a Python file with config()."""
    run: Annotated[Run, tyro.conf.arg(name="")]
    programs: tuple[Literal["train", "sampler"], ...] = ("train", "sampler")
    """Programs to compile."""
    images: int = 8
    """Images that the sampler makes on each chip at once, anchors not counted."""
    steps: int = 24
    """Denoising steps of the sampler."""
    guidance: GuidanceMode = "decoupled"
    """Guidance branches of the sampler."""
    consistency: float = 0.0
    """Share of its tokens that every anchor shares with the set."""
    anchors: int = 8
    """Anchors of the sampler, made beside the images on every chip; none without consistency."""
    reserve: float = 0.05
    """Share of a chip's memory that must stay free, for other programs and arrays on it."""
    json: Path | None = None
    """Also write the report to this file."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, largest=LARGEST_SIZE)
        for name in ("images", "steps", "anchors"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name, high in (("consistency", 1.0), ("reserve", 0.99)):
            require(0 <= getattr(self, name) <= high, name, getattr(self, name), f"must be within 0 and {high:g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, compiles and prints; returns the exit status."""
    jax.config.update("jax_platforms", "cpu")  # with the TPU compiler installed, JAX would look for chips here
    arguments = cli.parse_with_preset(
        Arguments, [DenoiserRun], argv, Path("configs/avatar_tiny.py"), adapt=without_files
    )
    fits: list[bool] = []

    def work(_: Console) -> bool:
        fits.append(check_fit(arguments, PlainConsole(stderr=False)))
        return True

    status = cli.run(work)
    return status or (COMPLETE if all(fits) else FAILED)


def check_fit(arguments: Arguments, console: Console) -> bool:
    """Compiles the programs and prints a report of each; returns whether all of them fit.

    Raises:
        ConfigError, TopologyError, WeightsError: the arguments, the topology or a weight file cannot be used.
    """
    _check(arguments)
    devices, chip = topology_devices(arguments.topology)
    mesh = make_mesh(arguments.run.mesh, devices)
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    console.print(f"{arguments.config.stem} on {arguments.topology}: {mesh.size} {chip.name} chips, mesh {axes}")
    reports = []
    for name in arguments.programs:
        console.print(f"compiling: {name} ...")
        try:
            reports.append(_report(name, arguments, mesh, chip))
        except ValueError as e:  # the mesh does not divide a parameter
            raise e if isinstance(e, GenAffectError) else ConfigError(str(e)) from e
        console.print(_table(reports[-1], chip))
        console.print(reports[-1].verdict, soft_wrap=True)
    if arguments.json is not None:
        _write(arguments, chip, mesh, reports)
    return all(report.fits for report in reports)


def without_files(run: Any) -> Any:
    """The preset with placeholders for the files and folders that it leaves to the user; a compile check reads none.

    Raises:
        ConfigError: the preset leaves another field than a file or folder to the user.
    """
    hints, given = get_type_hints(type(run)), {}
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if dataclasses.is_dataclass(value):
            given[field.name] = without_files(value)
        elif value is tyro.MISSING:
            kinds = {str: "not-read", Path: Path("not-read"), Path | None: Path("not-read")}
            if hints[field.name] not in kinds:
                raise ConfigError(f"{field.name}: the preset leaves it to the user; give a preset that sets it")
            given[field.name] = kinds[hints[field.name]]
    return dataclasses.replace(run, **given)


def _check(arguments: Arguments) -> None:
    if not arguments.programs:
        raise ConfigError("name train, sampler or both", field="programs")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise ConfigError(f"there is no folder {arguments.json.parent}", field="json", found=arguments.json)


def _report(name: str, arguments: Arguments, mesh: Mesh, chip: Chip) -> ProgramReport:
    run = arguments.run
    if name == "train":
        flops = step_flops(run, trained_share(run), remat=True) / mesh.size
        return compile_and_report(name, lower_train_step(run, mesh), chip, flops, arguments.reserve)
    anchors = arguments.anchors if arguments.consistency else 0
    spec = SamplerSpec(
        mode=arguments.guidance,
        shared=round(arguments.consistency * run.model.mmdit.image_tokens),
        anchors=anchors,
        first_decoded=anchors,
    )
    images = arguments.images + anchors
    return compile_and_report(
        name,
        lower_sampler(run, mesh, spec, images, steps=arguments.steps),
        chip,
        sampler_flops(run, spec, images, arguments.steps),
        arguments.reserve,
    )


def _table(report: ProgramReport, chip: Chip) -> Table:
    table = Table("", "each chip", title=report.name, title_justify="left")
    table.add_row("compilation", f"{report.compile_seconds:.0f} s")
    memory = report.memory
    if memory is not None:
        for name, size in dataclasses.asdict(memory).items():
            table.add_row(name, in_words(size))
        table.add_row(
            "total", f"{in_words(memory.total)} of {in_words(chip.memory)} ({memory.total / chip.memory:.0%})"
        )
    part = "denoiser" if report.name == "train" else "denoising"
    table.add_row(f"operations, {part}", f"{report.flops / 1e12:.3g} TFLOP")
    table.add_row("Pallas kernels", str(report.kernels))
    for spec, total in report.collectives.items():
        loops = ", counting one iteration of loops of unknown length" if total.loop else ""
        table.add_row(spec, f"{total.count} of {in_words(total.size)} in all, {in_words(total.sent)} sent{loops}")
    estimate = report.estimate
    if estimate is not None:
        parts = (
            f"products {_time(estimate.compute)} at {ATTAINABLE:.0%} of the peak",
            f"memory {_time(estimate.memory)} at the least",
            f"links {_time(estimate.links)} at full rate",
        )
        what = "estimated step" if report.name == "train" else "estimated chunk"
        table.add_row(f"{what}, not measured", f"{_time(estimate.step)}, the largest of: {'; '.join(parts)}")
    return table


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _write(arguments: Arguments, chip: Chip, mesh: Mesh, reports: Sequence[ProgramReport]) -> None:
    assert arguments.json is not None
    report = {
        "preset": arguments.config.stem,
        "topology": arguments.topology,
        "chip": dataclasses.asdict(chip),
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": arguments.run.train.batch_size,
        "expressions_per_set": arguments.run.data.expressions_per_set,
        "reserve": arguments.reserve,
        "jax": jax.__version__,
        "programs": [dataclasses.asdict(r) for r in reports],
    }
    write_atomically(arguments.json, json.dumps(report, indent=2))


if __name__ == "__main__":
    sys.exit(main())
