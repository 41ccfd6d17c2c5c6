"""Text encoders from a pipeline folder: what diffusers computes, and clear errors for broken folders."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from genaffect_jax.errors import WeightsError

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.torch

from safetensors.torch import load_file, save_file  # noqa: E402
from support.tiny_sd3 import T5_WIDTH, tiny_pipeline  # noqa: E402

from genaffect_jax.config import TextConfig  # noqa: E402
from genaffect_jax.data.prompts.table import PromptTable, all_prompts  # noqa: E402
from genaffect_jax.diffusion.schedule import euler_sigmas  # noqa: E402
from genaffect_jax.interop.diffusers import text_encoders  # noqa: E402
from genaffect_jax.interop.diffusers.pipeline_folder import scheduler_shift, text_parts  # noqa: E402
from genaffect_jax.interop.diffusers.text_encoders import TextEncoders  # noqa: E402
from genaffect_jax.prepare import __main__ as prepare  # noqa: E402

PROMPTS = ["a portrait of a person, joy expression", "", "Zest & eagerness!", "a portrait of a person"]


@pytest.fixture(scope="module")
def with_t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    return tiny_pipeline(folder), folder


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3_without_t5")
    return tiny_pipeline(folder, t5=False), folder


@pytest.fixture(params=["with_t5", "without_t5"])
def saved(request):
    """A pipeline of diffusers and the folder that it was saved to."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def folder(with_t5, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(with_t5[1], tmp_path / "copy")


@pytest.mark.parametrize("length", [77, 20])
def test_embeddings_equal_those_of_diffusers(saved, length):
    pipeline, folder = saved
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
    found_tokens, found_pooled = TextEncoders(folder, max_sequence_length=length).encode(PROMPTS)
    assert found_tokens.shape == (4, 77 + length, 40)
    assert found_tokens.dtype == found_pooled.dtype == np.float32
    np.testing.assert_allclose(found_tokens, tokens.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found_pooled, pooled.numpy(), rtol=0, atol=1e-6)
    assert np.abs(found_pooled[0] - found_pooled[3]).max() > 0.01  # the word in the prompt shows


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_in_its_type_and_near_float32(saved, dtype):
    encoders = TextEncoders(saved[1], max_sequence_length=20, dtype=dtype)
    exact = TextEncoders(saved[1], max_sequence_length=20).encode(PROMPTS)
    for half, full in zip(encoders.encode(PROMPTS), exact, strict=True):
        assert half.dtype.name == dtype
        assert np.abs(half.astype(np.float32) - full).max() < 0.15 * np.abs(full).max()


def test_a_prompt_longer_than_the_encoders_take_is_cut_with_a_warning(with_t5):
    encoders = TextEncoders(with_t5[1], max_sequence_length=20)
    with pytest.warns(UserWarning, match=r"tokens for text_encoder, cut to 77"):
        tokens, _ = encoders.encode(["xyz " * 60])
    assert tokens.shape[1] == 97


def test_a_shift_that_was_set_later_is_in_no_folder_and_of_no_constructor(tmp_path):
    """Why the guide asks for a new scheduler: the import could not see `set_shift`."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_shift(5.0)
    scheduler.save_pretrained(tmp_path / "scheduler")
    assert scheduler_shift(tmp_path) == 3.0
    again = diffusers.FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, shift=5.0)
    again.save_pretrained(tmp_path / "again" / "scheduler")
    assert scheduler_shift(tmp_path / "again") == 5.0
    for each in (scheduler, again):
        each.set_timesteps(4)
    np.testing.assert_allclose(again.sigmas, euler_sigmas(4, 5.0), atol=1e-6)
    assert np.abs(scheduler.sigmas.numpy() - euler_sigmas(4, 5.0)).max() > 1e-3
    assert np.abs(scheduler.sigmas.numpy() - euler_sigmas(4, 3.0)).max() > 1e-3


def test_the_noise_schedule_is_read_from_the_folder(with_t5, tmp_path):
    assert scheduler_shift(with_t5[1]) == 3.0
    path = tmp_path / "scheduler" / "scheduler_config.json"
    with pytest.raises(WeightsError, match=r"scheduler_config\.json: no such file"):
        scheduler_shift(tmp_path)
    path.parent.mkdir()
    values = json.loads((with_t5[1] / "scheduler" / "scheduler_config.json").read_text())
    for change, message in (
        ({"_class_name": "DDIMScheduler"}, "must be FlowMatchEulerDiscreteScheduler"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting=True: must be False"),
        ({"shift": "3"}, "shift='3': must be a positive number"),
    ):
        path.write_text(json.dumps(values | change))
        with pytest.raises(WeightsError, match=message):
            scheduler_shift(tmp_path)


def weights(folder, change):
    path = folder / "text_encoder_2" / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})


def truncate(folder):
    path = folder / "text_encoder_3" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def pickled(folder):
    path = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


BREAKS = {
    "no folder": (lambda f: shutil.rmtree(f), r"copy: no such folder"),
    "no encoder": (lambda f: shutil.rmtree(f / "text_encoder_3"), r"copy/text_encoder_3: no such folder"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), r"copy/tokenizer_2: no such folder"),
    "no index and not all encoders": (
        lambda f: [(f / "model_index.json").unlink(), shutil.rmtree(f / "text_encoder_3")],
        r"model_index\.json: no such file, and of .* the folder has text_encoder, text_encoder_2",
    ),
    "no config": (lambda f: (f / "text_encoder" / "config.json").unlink(), r"text_encoder/config\.json: no such file"),
    "empty tokenizer": (
        lambda f: [p.unlink() for p in (f / "tokenizer_3").iterdir()],
        r"tokenizer_3: has no tokenizer\.json or spiece\.model",
    ),
    "damaged tokenizer": (
        lambda f: (f / "tokenizer_3" / "tokenizer.json").write_text("{"),
        r"tokenizer_3: not readable as a T5Tokenizer",
    ),
    "truncated": (truncate, r"text_encoder_3/model\.safetensors: damaged, or no safetensors file"),
    "pickle": (pickled, r"text_encoder: has neither .*pytorch_model\.bin.*pickle files are not read"),
    "missing key": (
        lambda f: weights(f, lambda s: s.pop("text_projection.weight")),
        r"text_encoder_2: the weights do not fit config\.json: missing text_projection\.weight",
    ),
    "extra key": (lambda f: weights(f, lambda s: s.update(more=torch.ones(2))), r"text_encoder_2: .* unknown more"),
    "wrong shape": (
        lambda f: weights(f, lambda s: s.update({"text_projection.weight": torch.ones(3, 16)})),
        r"text_projection\.weight has shape \(3, 16\), must be \(16, 16\)",
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_folder_gives_one_error_that_names_what_is_wrong(folder, what):
    damage, message = BREAKS[what]
    damage(folder)
    with pytest.raises(WeightsError, match=message):
        TextEncoders(folder, max_sequence_length=20)


def test_the_files_that_decide_the_embeddings_are_listed_once(folder):
    names = set(text_parts(folder).files)
    assert {"text_encoder/model.safetensors", "tokenizer_2/tokenizer.json", "text_encoder_3/config.json"} <= names
    assert not any(name.startswith(("transformer", "vae", "raw")) for name in names)


PRESET = """
from pathlib import Path
from genaffect_jax.config import *

def config():
    mmdit = MMDiTConfig(
        sample_size=8, in_channels=4, attention_head_dim=16, num_attention_heads=1,
        joint_attention_dim={width}, pooled_projection_dim=28, pos_embed_max_size=8,
        register_tokens=0,
    )
    autoencoder = AutoencoderConfig(latent_channels=4, block_out_channels=(16, 16))
    text = TextConfig(max_sequence_length=40, embeddings=Path("later.safetensors"))
    model = ModelConfig(mmdit=mmdit, autoencoder=autoencoder)
    return DenoiserRun(data=DataConfig(image_size=16), model=model, text=text)
"""


def test_prepare_writes_all_prompts_and_runs_no_encoder_twice(with_t5, tmp_path, monkeypatch):
    (tmp_path / "preset.py").write_text(PRESET.format(width=T5_WIDTH))
    out = tmp_path / "out" / "prompts.safetensors"
    argv = ["--config", str(tmp_path / "preset.py"), "--pipeline", str(with_t5[1]), "--out", str(out)]
    argv += ["--dtype", "float32"]
    assert prepare.main(["prompts", *argv]) == 0
    table = PromptTable.read(out)
    assert table.prompts == all_prompts(TextConfig())
    assert (table.tokens.shape, table.pooled.shape) == ((138, 117, T5_WIDTH), (138, 28))
    chosen = ["", "a portrait of a person, zest expression"]
    tokens, pooled = TextEncoders(with_t5[1], max_sequence_length=40).encode(chosen)
    rows = table.rows(chosen)
    np.testing.assert_allclose(table.tokens[rows], tokens, atol=1e-6)
    np.testing.assert_allclose(table.pooled[rows], pooled, atol=1e-6)

    loaded = []
    monkeypatch.setattr(text_encoders, "TextEncoders", lambda *a, **k: loaded.append(1) or TextEncoders(*a, **k))
    out.unlink()
    assert prepare.main(["prompts", *argv]) == 0
    assert loaded == []
    assert PromptTable.read(out).tokens.tobytes() == table.tokens.tobytes()
    entry = sorted((tmp_path / "out" / "prompt_cache").glob("*.safetensors"))[7]
    entry.write_bytes(entry.read_bytes()[:-4])
    with pytest.warns(UserWarning, match=rf"{entry.name}: damaged.*computed again"):
        assert prepare.main(["prompts", *argv]) == 0
    assert loaded == [1]
    again = PromptTable.read(out)
    np.testing.assert_allclose(again.tokens, table.tokens, atol=1e-6)


def test_prepare_takes_the_variant_of_the_weight_files_and_names_it_where_there_is_no_other(with_t5, tmp_path, capsys):
    with_t5[0].save_pretrained(tmp_path / "fp16", variant="fp16")
    (tmp_path / "fp16" / "model_index.json").unlink()  # all three encoders are there
    (tmp_path / "preset.py").write_text(PRESET.format(width=T5_WIDTH))

    def run(name, pipeline, *more):
        argv = ["--config", str(tmp_path / "preset.py"), "--pipeline", str(pipeline), "--out", str(tmp_path / name)]
        return prepare.main(["prompts", *argv, "--dtype", "float32", *more])

    capsys.readouterr()
    assert run("x", tmp_path / "fp16") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: --variant: {tmp_path / 'fp16' / 'text_encoder'} has weights of the variant fp16")
    assert said.count("\n") == 1
    assert run("named", tmp_path / "fp16", "--variant", "fp16") == 0
    assert run("plain", with_t5[1]) == 0
    expected, found = (PromptTable.read(tmp_path / name) for name in ("plain", "named"))
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_prepare_refuses_a_pipeline_that_does_not_fit_the_preset(with_t5, tmp_path, capsys):
    (tmp_path / "preset.py").write_text(PRESET.format(width=T5_WIDTH + 1))
    out = tmp_path / "prompts.safetensors"
    argv = ["--config", str(tmp_path / "preset.py"), "--pipeline", str(with_t5[1]), "--out", str(out)]
    assert prepare.main(["prompts", *argv]) == 1
    message = "token width (mmdit.joint_attention_dim) is 40, the configuration needs 41"
    assert message in capsys.readouterr().err
    assert not out.exists()
