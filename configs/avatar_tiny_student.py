"""`avatar_tiny_student`: the model of `make train-tiny`, with its guidance distilled: 4 evaluations instead of 8.

It begins as its teacher, and everything but the training is the teacher's:

    python -m genaffect_jax.train --config configs/avatar_tiny.py --workdir out/avatar_tiny
    python -m genaffect_jax.train --config configs/avatar_tiny_student.py --workdir out/avatar_tiny_student
"""

import dataclasses
import runpy
from pathlib import Path

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun, DistillationConfig, SamplingDefaults, TrainConfig, from_json

TEACHER = Path("out/avatar_tiny")
STEPS = 4


def config() -> DenoiserRun:
    stored = RunDir(TEACHER).config
    # Without the teacher, training stops and says that it is missing.
    teacher = (
        from_json(DenoiserRun, stored.read_text(encoding="utf-8"))
        if stored.is_file()
        else runpy.run_path(str(Path(__file__).with_name("avatar_tiny.py")))["config"]()
    )
    return dataclasses.replace(
        teacher,
        # This teacher is best in 4 steps itself: only its guidance is left to distil (docs/notes/avatar_tiny.md).
        distillation=DistillationConfig(teacher=TEACHER, steps=STEPS, teacher_steps=1),
        sampling=SamplingDefaults(steps=STEPS, guidance_expression=1.0),
        train=TrainConfig(
            steps=600,
            batch_size=6,
            learning_rate=2e-4,
            probe_every=0,
            checkpoint_every=200,
            sample_every=200,
            keep_best=0,
        ),
    )
