"""Settings of distillation: a trained model teaches a copy of itself to sample in few steps without guidance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genaffect_jax.config.numbers import LARGEST_SIZE, require_usable_numbers
from genaffect_jax.config.sampling import GuidanceMode, SamplingConfig
from genaffect_jax.errors import require


@dataclass(frozen=True)
class DistillationConfig:
    """The teacher, and how student and teacher step."""

    teacher: Path | None = None
    """Run folder of the teacher, a denoiser of the same `model`; none for training without a teacher."""
    steps: int = 4
    """Euler steps in which the student samples, at the noise levels of `diffusion.schedule.euler_sigmas`."""
    teacher_steps: int = 8
    """Euler steps of the teacher in each step of the student."""
    guidance_identity: float = 1.0
    """The teacher's guidance scale for the person, which becomes the student's 1."""
    guidance_expression: float = 1.5
    """The teacher's guidance scale for the expression, which becomes the student's 1."""
    scales: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest weight of the identity and the expression branch; each step draws both, for teacher and
    student, so that `identity_scale` and `expression_scale` keep their effect."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "distillation.", LARGEST_SIZE)
        for name in ("steps", "teacher_steps"):
            require(1 <= getattr(self, name) <= 1000, f"distillation.{name}", getattr(self, name), "must be 1 to 1000")
        for name in ("guidance_identity", "guidance_expression"):
            require(getattr(self, name) >= 0, f"distillation.{name}", getattr(self, name), "must be at least 0")
        require(
            len(self.scales) == 2 and 0.0 <= self.scales[0] <= self.scales[1],
            "distillation.scales",
            self.scales,
            "must be two weights, 0 <= low <= high",
        )

    @property
    def mode(self) -> GuidanceMode:
        """The branches of the teacher's guidance."""
        return SamplingConfig(
            guidance_identity=self.guidance_identity, guidance_expression=self.guidance_expression
        ).mode
