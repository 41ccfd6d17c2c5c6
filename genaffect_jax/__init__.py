"""Avatar sets: one character, many expressions, always the same person."""

from typing import TYPE_CHECKING, Any

from genaffect_jax.version import __version__

if TYPE_CHECKING:
    from genaffect_jax.pipeline import Pipeline

__all__ = ["Pipeline", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy: importing the package must not import JAX (input workers and `--help` do without).
    if name == "Pipeline":
        from genaffect_jax.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
