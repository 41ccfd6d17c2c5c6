"""Shared by all tests: eight simulated devices, and a model small enough to train in seconds."""

import os

from support.devices import first_device
from support.shared import made_once
from support.xla_flags import xla_flags

# Before JAX starts: meshes of up to eight devices are tested on the CPU. Tests, and the commands that they start, share
# what has been compiled.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(devices=8)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import dataclasses
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from genaffect_jax.config import (
    AutoencoderConfig,
    ConditioningConfig,
    DataConfig,
    DenoiserRun,
    MMDiTConfig,
    ModelConfig,
    TrainConfig,
)

# Rooms and files that take longest; worker processes that begin with them end together.
LONG = (
    "training",
    "inference",
    "models/mmdit",
    "system/test_distributed.py",
    "models/face_encoders",
    "test_pipeline.py",
    "models",
    "compile_check",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first (with `--no-loadscope-reorder`; pytest-xdist would put those with few tests last)."""
    tests = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        place = str(item.path.relative_to(tests))
        return next((i for i, name in enumerate(LONG) if place.startswith(name)), len(LONG))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """JAX's traces are many small objects that live long: looking through them again and again takes a seventh of all
    processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_end_with_their_file() -> Iterator[None]:
    """Frees what a file has compiled: kept for the whole session, it would be some GB in each worker."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A 32-px model of two narrow blocks, with random autoencoder weights in a file."""
    import jax

    from genaffect_jax.io.weight_file import save_weights
    from genaffect_jax.models.autoencoder.model import AutoencoderKL
    from genaffect_jax.models.functional import Functional

    autoencoder = AutoencoderConfig(latent_channels=4, block_out_channels=(8, 8, 16), norm_num_groups=4)

    def save(folder: Path) -> None:
        network = Functional(lambda rngs: AutoencoderKL(autoencoder, rngs=rngs))
        save_weights(network.init(jax.random.key(1)), folder / "autoencoder.safetensors", "float32", autoencoder)

    path = made_once(tmp_path_factory, "weights", save) / "autoencoder.safetensors"
    return ModelConfig(
        mmdit=MMDiTConfig(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=0,
            pos_embed_max_size=4,
            register_tokens=2,
        ),
        autoencoder=autoencoder,
        conditioning=ConditioningConfig(expression_tokens=2, identity_layers=1),
        autoencoder_weights=str(path),
    )


@pytest.fixture(scope="session")
def trained_workdir(tiny_model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a short training of the tiny model."""
    from rich.console import Console

    from genaffect_jax.training.denoiser.task import train_denoiser

    config = DenoiserRun(
        data=DataConfig(image_size=32, identities=6, expressions_per_identity=4, expressions_per_set=2, workers=0),
        model=tiny_model,
        # A high rate: the zero-initialised branches must have moved for conditions to show in the images.
        train=TrainConfig(steps=6, batch_size=8, warmup_steps=1, learning_rate=0.03, checkpoint_every=100),
    )

    def train(folder: Path) -> None:
        with first_device():
            assert train_denoiser(config, folder, Console(quiet=True))

    return made_once(tmp_path_factory, "trained", train)


@pytest.fixture(scope="session")
def tiny_config(tiny_model: ModelConfig) -> DenoiserRun:
    """A run of a few steps on a few procedural avatars; of one block, as much of its time is compilation."""
    return DenoiserRun(
        data=DataConfig(
            image_size=32, identities=6, expressions_per_identity=4, expressions_per_set=2, holdout=0.2, workers=0
        ),
        model=dataclasses.replace(tiny_model, mmdit=dataclasses.replace(tiny_model.mmdit, num_layers=1)),
        train=TrainConfig(steps=4, batch_size=8, warmup_steps=1, log_every=1, checkpoint_every=100),
    )


@pytest.fixture
def one_device() -> Iterator[None]:
    """See `support.devices`."""
    with first_device():
        yield


@pytest.fixture
def preset(tiny_config: DenoiserRun, tmp_path: Path):
    """Writes a preset file whose `config()` makes `tiny_config` with changed `train` and `data` fields."""
    from genaffect_jax.config import to_json

    def write(train: dict | None = None, data: dict | None = None) -> Path:
        config = dataclasses.replace(
            tiny_config,
            train=dataclasses.replace(tiny_config.train, **(train or {})),
            data=dataclasses.replace(tiny_config.data, **(data or {})),
        )
        path = tmp_path / "preset.py"
        path.write_text(
            "from genaffect_jax.config import DenoiserRun, from_json\n\n\n"
            f"def config():\n    return from_json(DenoiserRun, {to_json(config)!r})\n"
        )
        return path

    return write


@pytest.fixture(scope="session")
def load_benchmark():
    """Imports `benchmarks/NAME.py`, which is a script and no part of the package."""
    import importlib.util
    import sys

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load
