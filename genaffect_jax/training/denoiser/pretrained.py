"""Training that starts from released weights: a transformer and an autoencoder in a diffusers folder or one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from genaffect_jax.config import AutoencoderConfig, ModelConfig
from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers.components import FREE_FIELDS
from genaffect_jax.interop.diffusers.single_file import holds_autoencoder
from genaffect_jax.interop.diffusers.weights import read_autoencoder, read_transformer, read_transformer_config
from genaffect_jax.io.atomic import copy_atomically
from genaffect_jax.io.weight_file import is_weight_file, load_weights, resolve_weights, save_weights
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.parameter_names import MMDIT, QUERY_KERNEL, branch_key_kernels


def initial_parameters(config: ModelConfig, mesh: Mesh) -> Parameters:
    """The denoiser's parameters that do not start at random: none, or those of `config.transformer_weights`.

    The released weights give all parameters except those of the condition branches. The keys of a branch are copies of
    the queries (see `models.mmdit.projections.ConditionBranch`); its values stay at their initial zero, so that the
    denoiser starts as the released model, whatever the conditions are. Tensors are read one by one straight to their
    places on the mesh, as float32.

    Raises:
        WeightsError: the configuration there differs from `config.mmdit` in more than `sample_size`, `scan_layers`
            and `remat` (all differences are listed), or its files have other variants; or see
            `interop.diffusers.weights.read_transformer`.
    """
    if not config.transformer_weights:
        return {}
    source = Path(config.transformer_weights)
    _require_equal(read_transformer_config(source), config.mmdit, source, "model.mmdit", FREE_FIELDS)
    with _variant_of("transformer"):
        read = read_transformer(source, dtype="float32", mesh=mesh, variant=config.transformer_variant or None)[1]
    parameters = {f"{MMDIT}{name}": p for name, p in read.items()}
    for name in list(parameters):
        if name.endswith(QUERY_KERNEL):
            for key_kernel in branch_key_kernels(name):
                parameters[key_kernel] = jnp.copy(parameters[name])
    return parameters


def place_autoencoder(config: AutoencoderConfig, source: str, path: Path, variant: str = "") -> None:
    """Writes the weight file of the frozen autoencoder from `source`, the value of `ModelConfig.autoencoder_weights`.

    `variant` is that of `ModelConfig.autoencoder_variant`.

    A weight file of this package is copied; a diffusers folder, of an autoencoder or of a pipeline, and a one-file
    checkpoint are converted. Everything is read and checked before anything is written.

    Raises:
        WeightsError: there is no such file or folder, it is damaged, its configuration is not `config`, or a file is
            neither a weight file nor a checkpoint with an autoencoder, or the source has no such variant.
    """
    place = Path(source)
    if not place.is_dir():
        if variant:
            raise WeightsError(
                f"{source}: a file has no variants, name a diffusers folder or no variant",
                field="model.autoencoder_variant",
                found=variant,
            )
        place = resolve_weights(source)
        if not holds_autoencoder(place):
            if not is_weight_file(place):
                raise WeightsError(
                    f"{place}: neither a weight file of this package (its header has no entry 'config') nor a one-file "
                    "checkpoint with an autoencoder (no key begins with first_stage_model.)"
                )
            load_weights(Functional(lambda rngs: AutoencoderKL(config, rngs=rngs)), place, config)
            copy_atomically(place, path)
            return
    with _variant_of("autoencoder"):
        found, parameters = read_autoencoder(place, dtype="float32", variant=variant or None)
    _require_equal(found, config, place, "model.autoencoder", ())
    save_weights(parameters, path, "float32", config)


@contextmanager
def _variant_of(part: str) -> Iterator[None]:
    """Errors about a variant name the setting of this command."""
    try:
        yield
    except WeightsError as e:
        if e.field == "variant":
            raise e.renamed(f"model.{part}_variant") from e
        raise


def _require_equal(found: object, wanted: object, source: Path, name: str, free: Collection[str]) -> None:
    differences = [
        f"{field.name} is {getattr(found, field.name)} there, {name}.{field.name}={getattr(wanted, field.name)}"
        for field in dataclasses.fields(wanted)  # type: ignore[arg-type]
        if field.name not in free and getattr(found, field.name) != getattr(wanted, field.name)
    ]
    if differences:
        raise WeightsError(f"{source}: weights of another network: {'; '.join(differences)}")
