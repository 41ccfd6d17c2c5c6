"""A small model with a text stream: trained and sampled from a table of random embeddings, without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from support.xla_flags import xla_flags

from genaffect_jax.config import DataConfig, DenoiserRun, FlowConfig, TextConfig, TrainConfig, to_json
from genaffect_jax.data.prompts.table import PromptTable, all_prompts
from genaffect_jax.diffusion.schedule import euler_sigmas
from genaffect_jax.errors import DataError
from genaffect_jax.expressions.grammar import parse_expressions
from genaffect_jax.inference.program import SamplerParams, SamplerSpec, SetInputs, make_program
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.prompts import Prompts
from genaffect_jax.pipeline import Pipeline
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.denoiser.task import train_denoiser

TEXT = TextConfig(template="{word} it is", plain="a face", negative="nothing", max_sequence_length=3)
QUIET = Console(quiet=True)
# Runs both commands and says what they have imported.
SCRIPT = """
import sys
from genaffect_jax import sample, train
preset, folder = sys.argv[1:]
status = train.main(["--config", preset, "--workdir", f"{folder}/run"])
arguments = ["--model", f"{folder}/run", "--identity", "seed:3", "--expressions", "joy, AU1=1", "--steps", "1"]
status = status or sample.main([*arguments, "--out", f"{folder}/set"])
print("imported:", *({"torch", "diffusers", "transformers", "jax"} & sys.modules.keys()))
sys.exit(status)
"""


def random_table(text: TextConfig, prompts: tuple[str, ...] | None = None) -> PromptTable:
    prompts = prompts or all_prompts(text)
    rng = np.random.default_rng(0)
    tokens, pooled = (rng.standard_normal((len(prompts), *shape), np.float32) for shape in ((5, 24), (12,)))
    return PromptTable(prompts, tokens, pooled, text.template, "random", text.max_sequence_length)


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory) -> DenoiserRun:
    path = tmp_path_factory.mktemp("table") / "prompts.safetensors"
    random_table(TEXT).write(path)
    mmdit = dataclasses.replace(tiny_model.mmdit, register_tokens=0, joint_attention_dim=24, pooled_projection_dim=12)
    return DenoiserRun(
        data=DataConfig(image_size=32, identities=6, expressions_per_identity=4, expressions_per_set=2, workers=0),
        model=dataclasses.replace(tiny_model, mmdit=mmdit),
        text=dataclasses.replace(TEXT, embeddings=path),
        # A high rate: the output layer starts at zero and must have moved for prompts to show.
        train=TrainConfig(steps=2, batch_size=8, warmup_steps=0, learning_rate=0.03, checkpoint_every=100),
    )


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    """A training of two steps in `run` and a set drawn by it in `set`, made by the commands; the table is gone."""
    path = tmp_path_factory.mktemp("text")
    (path / "preset.py").write_text(
        "from genaffect_jax.config import DenoiserRun, from_json\n\n\n"
        f"def config():\n    return from_json(DenoiserRun, {to_json(config)!r})\n"
    )
    table = config.text.embeddings.read_bytes()
    command = [sys.executable, "-c", SCRIPT, str(path / "preset.py"), str(path)]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(devices=1)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported:", "jax"]
    config.text.embeddings.unlink()
    yield path
    config.text.embeddings.write_bytes(table)


@pytest.fixture(scope="module")
def pipeline(folder):
    return Pipeline.load(folder / "run", devices=jax.devices()[:1])


def test_both_commands_run_without_pytorch_and_the_set_names_its_prompts(folder):
    saved = json.loads((folder / "set" / "set.json").read_text())
    assert saved["prompts"] == ["joy it is", "a face"]
    assert "prompts " in saved["model"]


def test_the_run_folder_alone_samples_and_the_prompt_shows(pipeline):
    images = pipeline("seed:2", "joy, AU1=1", steps=2, consistency=0).images
    np.testing.assert_array_equal(pipeline("seed:2", "joy, AU1=1", steps=2, consistency=0).images, images)
    # Same vectors, same noise, other prompts.
    joy, unit = parse_expressions("joy, AU1=1")
    swapped = pipeline("seed:2", [joy, dataclasses.replace(unit, word="fear")], steps=2, consistency=0).images
    np.testing.assert_array_equal(swapped[0], images[0])
    assert (swapped[1] != images[1]).any()


def test_the_branch_without_conditions_has_the_negative_prompt(pipeline, config):
    table = random_table(TEXT)
    vectors = np.stack([e.vector for e in parse_expressions("joy, AU1=1")])[None]
    reference, rows = pipeline.reference("seed:2")[None, None], table.rows(["joy it is", "a face"])[None]

    denoiser, autoencoder = build_networks(config.model)
    program = make_program(config.model, denoiser, autoencoder)
    inputs = SetInputs(reference, jnp.ones((1, 1), bool), vectors, jnp.array([[5, 6]]), rows)
    params = SamplerParams.plain(config.model.mmdit.num_layers, euler_sigmas(2, 1.0), 2)

    def draw(tokens, guidance):
        prompts = Prompts(jnp.asarray(tokens), jnp.asarray(table.pooled), jnp.asarray(table.rows(["nothing"])[0]))
        guided = dataclasses.replace(params, guidance_identity=jnp.float32(guidance))
        frozen_components = {**pipeline.sampler.frozen_components, "prompts": prompts}
        return np.asarray(
            program(pipeline.sampler.parameters, frozen_components, inputs, guided, spec=SamplerSpec("decoupled"))[0]
        )

    other = table.tokens.copy()
    other[table.rows(["nothing"])] *= -3
    # At guidance 1 the branch cancels, but for rounding.
    unguided = [draw(tokens, 1.0).astype(int) for tokens in (table.tokens, other)]
    assert np.abs(unguided[0] - unguided[1]).max() <= 1
    assert np.abs(draw(other, 4.0).astype(int) - draw(table.tokens, 4.0)).max() > 1


def test_dropped_prompts_are_replaced_by_the_negative_one():
    table = random_table(TEXT)
    prompts = Prompts.of(table, "nothing")
    rows = table.rows(["joy it is", "fear it is", "joy it is", "a face"]).reshape(2, 2)
    drop = np.array([[True, False], [False, True]])
    tokens, pooled = prompts.lookup(jnp.asarray(rows), jnp.asarray(drop))
    expected = table.rows(["nothing", "fear it is", "joy it is", "nothing"]).reshape(2, 2)
    np.testing.assert_array_equal(tokens, table.tokens[expected])
    np.testing.assert_array_equal(pooled, table.pooled[expected])


def test_the_training_loss_sees_the_prompts_and_where_they_drop_the_negative_one(pipeline, config):
    denoiser, autoencoder = build_networks(config.model)
    table = random_table(TEXT)
    rng = np.random.default_rng(1)
    batch = {
        "reference": rng.standard_normal((4, 1, 8, 8, 4), np.float32),
        "target": rng.standard_normal((4, 2, 8, 8, 4), np.float32),
        "expression": rng.random((4, 2, 40), np.float32),
    }
    compute = make_denoiser_loss(FlowConfig(drop_text=0.5), autoencoder)

    @jax.jit
    def loss(parameters, prompts, rows):
        model = denoiser.merge(parameters)
        keys = jax.random.split(jax.random.key(0), 4)
        return compute(model, {"prompts": prompts}, {**batch, "prompt": rows}, keys)["loss"][0]

    joy, fear = (np.full((4, 2), table.rows([f"{word} it is"])[0]) for word in ("joy", "fear"))
    base = loss(pipeline.sampler.parameters, Prompts.of(table, "nothing"), joy)
    assert loss(pipeline.sampler.parameters, Prompts.of(table, "nothing"), fear) != base
    assert loss(pipeline.sampler.parameters, Prompts.of(table, "a face"), joy) != base


def test_a_table_without_the_needed_prompts_is_refused_and_not_copied(config, tmp_path):
    random_table(TEXT, ("nothing", "a face", "joy it is")).write(tmp_path / "few.safetensors")
    broken = dataclasses.replace(config, text=dataclasses.replace(config.text, embeddings=tmp_path / "few.safetensors"))
    with pytest.raises(DataError, match=r"few\.safetensors: .*no embeddings of '.* it is' and \d+ more"):
        train_denoiser(broken, tmp_path / "run", QUIET)
    assert not (tmp_path / "run" / "prompts.safetensors").exists()
    other = dataclasses.replace(config.text, embeddings=tmp_path / "none.safetensors")
    with pytest.raises(DataError, match=r"none\.safetensors: no such prompt table; make it: python -m"):
        train_denoiser(dataclasses.replace(config, text=other), tmp_path / "other", QUIET)
