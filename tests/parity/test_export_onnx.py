"""`export onnx`: the graphs compute in onnxruntime what our networks compute in JAX, for batches of any size."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from support.avatar_runs import save_avatar_run
from support.devices import first_device
from support.exported import assert_same_images, save_text_run
from support.sd3_runs import random_parameters, set_sampling

from genaffect_jax import Pipeline
from genaffect_jax.config import SamplingConfig, SamplingDefaults
from genaffect_jax.data.prompts.table import prompt_for
from genaffect_jax.diffusion.sampler import initial_noise
from genaffect_jax.diffusion.seeds import seed_words
from genaffect_jax.errors import WeightsError
from genaffect_jax.export.evidence import Case, collect
from genaffect_jax.export.onnx import export_onnx
from genaffect_jax.export.onnx_check import IMAGE_TOLERANCE, TOLERANCE, Sizes, largest_differences
from genaffect_jax.export.trained import TrainedModel
from genaffect_jax.expressions.grammar import parse_expressions
from genaffect_jax.inference.noise_ids import noise_ids_of
from genaffect_jax.interop.onnx.signatures import signatures
from genaffect_jax.io.onnx_file import parse_model
from genaffect_jax.models.build import build_networks

for library in ("torch", "diffusers", "onnxscript"):
    pytest.importorskip(library)
onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")

from genaffect_jax.interop.onnx.sampler import Prompts, Sampler  # noqa: E402 (needs onnxruntime)
from genaffect_jax.interop.torch import onnx_graphs  # noqa: E402 (needs torch)

pytestmark = pytest.mark.torch
KINDS = ("avatar", "prompted")
OPSETS = {"avatar": 20, "prompted": 23}
OWN = SamplingDefaults(steps=3, guidance_expression=1.0, consistency=0.25)
"""The avatar model's own settings; the prompted model has the usual ones."""
PERSON = "seed:11"


@dataclass(frozen=True)
class Export:
    run: Path
    folder: Path
    differences: dict[str, float]
    remarks: list[str]
    trained: TrainedModel


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    """Weights of the avatar model lie in its graphs, those of the prompted model in files of their own."""
    found, folder = {}, tmp_path_factory.mktemp("exports")
    save_avatar_run(folder / "avatar_run", folder / "encoder.safetensors")
    set_sampling(folder / "avatar_run", OWN)
    save_text_run(folder / "prompted_run")
    for kind, external_above in zip(KINDS, (1_000_000_000, 0), strict=True):
        run, out = folder / f"{kind}_run", folder / kind
        with first_device():
            differences, remarks = export_onnx(run, out, opset=OPSETS[kind], external_above=external_above)
            found[kind] = Export(run, out, differences, remarks, TrainedModel.load(run))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_give_our_arrays_for_batches_that_were_neither_traced_nor_checked(kind, exports):
    export = exports[kind]
    described = signatures(export.trained.config.model)
    with first_device():
        differences = largest_differences(export.trained, export.folder, described, [Sizes(3, 2, 5)])
    assert differences.keys() == export.differences.keys()
    assert differences.pop("images") < IMAGE_TOLERANCE
    assert max(differences.values()) < TOLERANCE


@pytest.mark.filterwarnings("ignore:the model's own consistency")
@pytest.mark.parametrize("kind", KINDS)
def test_a_guided_set_sampled_by_the_graphs_alone_is_ours(kind, exports):
    export, trained = exports[kind], exports[kind].trained
    layers = trained.config.model.mmdit.num_layers
    scales = {"identity_scale": tuple(np.linspace(0.5, 1.25, layers)), "expression_scale": (1.5,)}
    settings = SamplingConfig(steps=3, seed=3, guidance_identity=1.5, guidance_expression=2.0, **scales)
    with first_device():
        record, ours = collect(trained, [Case("guided", 2, settings)])
    expressions = parse_expressions(record["cases"][0]["expressions"], trained.space)
    prompts = None
    if trained.prompts is not None:
        table, text = trained.prompts, trained.config.text
        rows, negative = table.rows([prompt_for(e, text) for e in expressions]), table.rows([text.negative])[0]
        prompts = Prompts(table.tokens[rows], table.pooled[rows], table.tokens[negative], table.pooled[negative])
    sample = Sampler(export.folder)
    given = [ours[f"guided.{name}"] for name in ("reference", "vectors", "noise")]
    theirs = {"steps": 3, "guidance_identity": 1.5, "guidance_expression": 2.0, "prompts": prompts, **scales}
    np.testing.assert_allclose(sample.latents(*given, **theirs), ours["guided.latents"], rtol=0, atol=1e-4)
    difference = np.abs(sample(*given, **theirs).astype(int) - ours["guided.images"])
    assert difference.max() <= 1
    without = sample.latents(*given, **{**theirs, "guidance_identity": 1.0})
    assert np.abs(without - ours["guided.latents"]).max() > 1e-2  # else guidance would not show


@pytest.mark.parametrize("kind", KINDS)
def test_the_description_names_what_the_graphs_take_and_give(kind, exports):
    folder = exports[kind].folder
    description = json.loads((folder / "onnx.json").read_text())
    assert description["sampling"]["shift"] == exports[kind].trained.config.flow.shift
    for graph in description["graphs"].values():
        model = onnx.load(folder / graph["file"], load_external_data=False)
        assert {o.domain: o.version for o in model.opset_import}[""] == description["opset"] == OPSETS[kind]
        session = onnxruntime.InferenceSession(folder / graph["file"])
        for side, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert [tensor["name"] for tensor in graph[side]] == [value.name for value in found]
            for tensor, value in zip(graph[side], found, strict=True):
                assert value.type == {"float32": "tensor(float)", "bool": "tensor(bool)"}[tensor["dtype"]]
                free = [isinstance(length, str) for length in tensor["shape"]]
                assert free == [isinstance(length, str) for length in value.shape]
                assert [n for n in tensor["shape"] if n not in description["axes"]] == [
                    n for n in value.shape if not isinstance(n, str)
                ]


def test_large_weights_lie_beside_their_graph_and_small_ones_within(exports):
    for kind, external in (("avatar", False), ("prompted", True)):
        for name in ("conditions", "denoiser", "decoder"):
            graph = exports[kind].folder / f"{name}.onnx"
            assert graph.with_name(f"{name}.onnx.data").exists() == external
            described = json.loads(graph.with_name("onnx.json").read_text())["graphs"][name]
            assert described.get("weights") == (f"{name}.onnx.data" if external else None)
            assert (f"{name}.onnx.data" in graph.with_name("SHA256SUMS").read_text()) == external
            onnx.checker.check_model(graph)


def test_a_graph_without_its_weights_is_named_and_is_no_encoder(exports, tmp_path):
    folder = shutil.copytree(exports["prompted"].folder, tmp_path / "copy")
    with pytest.raises(WeightsError, match=r"its weights lie in other files \('decoder.onnx.data'\)"):
        parse_model((folder / "decoder.onnx").read_bytes(), "decoder.onnx")
    (folder / "decoder.onnx.data").unlink()
    with pytest.raises(FileNotFoundError, match=r"decoder.onnx.data: no such file; decoder.onnx needs it"):
        Sampler(folder)


def test_graphs_name_no_file_of_the_machine_that_wrote_them(exports):
    for file in exports["avatar"].folder.glob("*.onnx"):
        content = file.read_bytes()
        assert b".py" not in content
        assert str(Path.home()).encode() not in content


def test_the_sampler_runs_as_a_script_without_jax_and_torch(exports, tmp_path):
    side = exports["avatar"].trained.config.model.image_size
    face = tmp_path / "face.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(face)
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(('jax', 'torch', 'genaffect_jax')));"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    script = exports["avatar"].folder / "sampler.py"
    subprocess.run([sys.executable, "-c", code, script, face, "joy, neutral", tmp_path / "set"], check=True)
    joy, neutral = (np.asarray(Image.open(tmp_path / "set" / f"{word}.png")) for word in ("joy", "neutral"))
    assert joy.shape == (side, side, 3)
    assert np.abs(joy.astype(int) - neutral).max() > 1


@pytest.fixture
def copied_graphs(exports, monkeypatch):
    """The exporter gives the avatar model's graphs, whatever the parameters are."""

    def copy(components, out, *rest):
        for file in exports["avatar"].folder.glob("*.onnx"):
            shutil.copy(file, out)

    monkeypatch.setattr(onnx_graphs, "write_graphs", copy)


@pytest.mark.usefixtures("copied_graphs", "one_device")
def test_an_earlier_export_is_replaced_only_by_graphs_that_agree(exports, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(exports["avatar"].folder, out)
    before = (out / "onnx.json").read_text()
    trained = exports["avatar"].trained
    others = random_parameters(build_networks(trained.config.model)[0], seed=1)
    with monkeypatch.context() as changed:
        changed.setattr(TrainedModel, "load", lambda *_: dataclasses.replace(trained, denoiser=others))
        with pytest.raises(WeightsError, match=r"not exported: the graphs differ .*identity_keys by .*velocity by"):
            export_onnx(exports["avatar"].run, out, overwrite=True)
    assert (out / "onnx.json").read_text() == before
    assert list(tmp_path.iterdir()) == [out]
    export_onnx(exports["avatar"].run, out, opset=19, overwrite=True)
    assert json.loads((out / "onnx.json").read_text())["opset"] == 19 != json.loads(before)["opset"]


@pytest.fixture(scope="module")
def ours(exports) -> Pipeline:
    return Pipeline.load(exports["avatar"].run, devices=jax.devices()[:1])


def inputs_of(ours: Pipeline, *words: str) -> list[np.ndarray]:
    """References, vectors and the noise of seed 0."""
    expressions = ours.parse(", ".join(words))
    network = ours.config.model.mmdit
    shape = (network.sample_size, network.sample_size, network.in_channels)
    noise = initial_noise(seed_words(0), noise_ids_of(expressions), shape)
    vectors = np.stack([e.vector for e in expressions])
    return [ours.reference(PERSON)[None], vectors, np.moveaxis(np.asarray(noise), -1, 1)]


def test_a_call_without_settings_gives_what_our_pipeline_gives_without_settings(exports, ours):
    sample = Sampler(exports["avatar"].folder)
    with warnings.catch_warnings():  # the consistency of the model does not matter to an only image
        warnings.simplefilter("error")
        found = sample(*inputs_of(ours, "joy"))
    assert_same_images(found, ours(PERSON, "joy").images)
    for name, value in (("steps", 24), ("guidance_expression", 1.5), ("guidance_identity", 0.0)):
        given = sample(*inputs_of(ours, "joy"), **{name: value})
        assert_same_images(given, ours(PERSON, "joy", **{name: value}).images)
        assert np.abs(given.astype(int) - found).max() > 1, name


def test_what_the_sampler_lacks_of_the_models_own_settings_is_said_at_export_and_at_every_call(exports, ours, tmp_path):
    export = exports["avatar"]
    (remark,) = export.remarks
    assert remark.startswith("not exported: consistency 0.25, the model's own")
    assert remark in json.loads((export.folder / "onnx.json").read_text())["limits"]
    assert not exports["prompted"].remarks
    sample, inputs = Sampler(export.folder), inputs_of(ours, "joy", "anger")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"own consistency is 0\.25, which is not here.* consistency 0\.0"):
            found = sample(*inputs)
    assert_same_images(found, ours(PERSON, "joy, anger", consistency=0.0).images)
    assert np.abs(found.astype(int) - ours(PERSON, "joy, anger").images).max() > 1
    own = {**dataclasses.asdict(OWN), "solver": "heun"}
    other = Sampler(with_defaults(export.folder, tmp_path / "other", own))
    with pytest.warns(UserWarning, match="own solver is 'heun', which is not here.* solver 'euler'"):
        np.testing.assert_array_equal(other(*inputs), found)


def test_a_folder_that_says_nothing_of_settings_has_those_of_earlier_versions(exports, ours, tmp_path):
    folder, inputs = exports["avatar"].folder, inputs_of(ours, "joy")
    now, old = Sampler(folder), Sampler(with_defaults(folder, tmp_path / "old", None))
    given = {"steps": 24, "guidance_identity": 1.0, "guidance_expression": 1.5}
    np.testing.assert_array_equal(old(*inputs), now(*inputs, **given))
    assert np.abs(old(*inputs).astype(int) - now(*inputs)).max() > 1


def with_defaults(folder: Path, target: Path, defaults: dict[str, Any] | None) -> Path:
    """A copy of a folder of graphs whose onnx.json says other settings of the model, or nothing of them."""
    shutil.copytree(folder, target)
    file = target / "onnx.json"
    description = json.loads(file.read_text())
    description["sampling"].pop("defaults")
    description["sampling"] |= {} if defaults is None else {"defaults": defaults}
    file.write_text(json.dumps(description))
    return target
