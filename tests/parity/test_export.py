"""An exported folder samples in PyTorch what this package samples, says so if it does not, and comes home again."""

from __future__ import annotations

import itertools
import json
import struct
import warnings

import jax
import numpy as np
import pytest
from PIL import Image
from support.exported import KINDS, load, save_prompts, to_pil
from support.sd3_runs import run_config, save_run

from genaffect_jax.config import LoraConfig, SamplingConfig
from genaffect_jax.export import __main__ as export
from genaffect_jax.export.diffusers import export_diffusers
from genaffect_jax.export.evidence import Case, collect, pipeline_settings
from genaffect_jax.export.from_torch import from_torch
from genaffect_jax.export.lora import export_lora
from genaffect_jax.export.trained import TrainedModel
from genaffect_jax.pipeline import Pipeline

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors_torch = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def pipes(folders):
    return {kind: load(folder) for kind, folder in folders.items()}


# Guidance (joint, decoupled, none), scales of the branches, consistent attention, and the number of references.
SETTINGS = [
    ({"guidance": 2.0, "identity_scale": 1.5, "expression_scale": 0.0, "consistency": 0.5, "anchors": 2}, 2),
    ({"guidance_identity": 1.5, "guidance_expression": 2.0, "identity_scale": 0.5, "expression_scale": 1.5}, 1),
    ({"guidance": 1.0, "identity_scale": 0.0, "expression_scale": 0.5, "consistency": 1.0, "anchors": 1}, 3),
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_samples_the_same_in_pytorch(runs, pipes, kind) -> None:
    model, pipe = TrainedModel.load(runs[kind]), pipes[kind]
    for number, (changes, references) in enumerate(SETTINGS if kind != "faces" else SETTINGS[:1]):
        settings = SamplingConfig(steps=3, seed=number, chunk=1, **changes)
        record, expected = collect(model, [Case("case", references, settings)])
        state = pipe.run(
            image=[to_pil(x) for x in expected["case.reference"]],
            expressions=record["cases"][0]["expressions"],
            output_type="np",
            **pipeline_settings(settings),
        )
        np.testing.assert_allclose(state.get("latents"), expected["case.latents"], atol=1e-4, err_msg=str(changes))
        error = np.abs(state.get("images").astype(int) - expected["case.images"].astype(int))
        assert (error <= 1).mean() >= 0.999, changes


@pytest.mark.parametrize("kind", KINDS)
def test_a_users_call_gives_the_images_of_our_pipeline(runs, pipes, kind) -> None:
    ours = Pipeline.load(runs[kind], devices=jax.devices()[:1])
    person = ours.reference("seed:11")
    expected = ours(person, "joy, anger:0.6, sadness, joy", steps=3, seed=2**40 + 5).images
    found = pipes[kind](to_pil(person), "joy, anger:0.6, sadness, joy", num_inference_steps=3, seed=2**40 + 5).images
    assert all(image.size == (person.shape[0],) * 2 for image in found)
    error = np.abs(np.stack([np.asarray(image) for image in found]).astype(int) - expected.astype(int))
    assert (error <= 1).mean() >= 0.999
    assert np.abs(expected[0].astype(int) - expected[1].astype(int)).max() > 1  # expressions show


def test_image_files_are_read_as_ours_are(runs, pipes, tmp_path) -> None:
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (70, 90, 4), np.uint8))
    rgba.save(tmp_path / "transparent.png")
    rgba.convert("RGB").resize((900, 1300)).save(tmp_path / "large.jpg", exif=turned())
    rgba.convert("L").save(tmp_path / "grey.png")
    rgba.convert("P").save(tmp_path / "palette.gif")
    rgba.convert("RGB").save(tmp_path / "turned.tif", exif=turned())
    rgba.convert("RGB").save(tmp_path / "odd.jpg", exif=odd_tag())
    ours = Pipeline.load(runs["avatar"], devices=jax.devices()[:1])
    from genaffect_jax.interop.torch.pipeline import EncodeStep

    for file in tmp_path.iterdir():
        found = EncodeStep().read(pipes["avatar"], file)[0].permute(1, 2, 0)
        expected = ours.reference(file).astype(np.float32) / 127.5 - 1
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=file.name)


def test_grey_of_more_than_8_bits_is_refused_by_name(pipes, tmp_path) -> None:
    from genaffect_jax.interop.torch.pipeline import EncodeStep

    Image.fromarray(np.full((8, 8), 9000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="I;16: grey of more than 8 bits"):
        EncodeStep().read(pipes["avatar"], tmp_path / "a.png")


def odd_tag() -> bytes:
    """A quarter turn, and a resolution of type BYTE, with which Pillow's `exif_transpose` fails."""
    entries = struct.pack(">HHIHxx", 274, 3, 1, 6) + struct.pack(">HHII", 282, 1, 1, 5)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    return exif


def test_images_do_not_depend_on_the_chunk(pipes) -> None:
    text, image = "joy, anger, fear, neutral, sadness", to_pil(np.full((32, 32, 3), 90, np.uint8))
    for consistency in (0.0, 0.5):
        sets = [
            pipes["avatar"].run(
                image=image,
                expressions=text,
                num_inference_steps=2,
                consistency=consistency,
                anchors=2,
                chunk=chunk,
                output_type="latent",
            )
            for chunk in (1, 2, 8)
        ]
        for other in sets[1:]:
            torch.testing.assert_close(other.get("latents"), sets[0].get("latents"), atol=1e-5, rtol=0)
    assert not torch.equal(sets[0].get("latents")[2], sets[0].get("latents")[3])


def test_the_modular_pipeline_is_the_same(folders, pipes) -> None:
    modular = diffusers.ModularPipeline.from_pretrained(str(folders["faces"]), trust_remote_code=True)
    modular.load_components()
    given = {"image": to_pil(np.full((16, 16, 3), 120, np.uint8)), "expressions": "joy, anger", "output_type": "np"}
    found = modular(**given, num_inference_steps=2, output="images")
    expected = pipes["faces"].run(**given, num_inference_steps=2).get("images")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_transformer_is_diffusers_own_and_its_blocks_compile_once(folders, pipes, kind) -> None:
    _, report = diffusers.SD3Transformer2DModel.from_pretrained(
        folders[kind] / "transformer", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(report.values()), report
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = load(folders[kind])
    compiled.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    size = 32 if kind == "avatar" else 16
    given = {"image": to_pil(np.full((size, size, 3), 120, np.uint8)), "expressions": "joy, anger, sadness"}
    given |= {"num_inference_steps": 2, "output_type": "latent"}
    expected = pipes[kind].run(**given).get("latents")
    found = compiled.run(**given).get("latents")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled.run(**given, identity_scale=0.5, expression_scale=1.5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # other scales, same programs
    # Blocks with a second attention, blocks without, and the last: at most three kinds.
    assert 0 < graphs <= 3


def parameters(model: TrainedModel):
    return {**model.denoiser, **{f"autoencoder.{name}": value for name, value in model.autoencoder.items()}}


@pytest.mark.parametrize("kind", KINDS)
def test_the_round_trip_is_the_identity_bit_for_bit(runs, folders, pipes, kind, tmp_path) -> None:
    pipes[kind].save_pretrained(tmp_path / "saved")
    before = TrainedModel.load(runs[kind])
    for folder in (folders[kind], tmp_path / "saved"):
        out = tmp_path / f"home_of_{folder.name}"
        from_torch(folder, out)
        after = TrainedModel.load(out)
        assert after.config == before.config
        assert after.step == before.step
        expected, found = parameters(before), parameters(after)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            bits = [np.asarray(x).view(np.uint32) for x in (value, found[name])]
            np.testing.assert_array_equal(*bits, err_msg=name)
        if before.faces.identity is not None:
            for name, value in before.faces.identity.parameters.items():
                np.testing.assert_array_equal(after.faces.identity.parameters[name], value)
        if before.prototypes is not None:
            for word, vector in before.prototypes.vectors.items():
                np.testing.assert_array_equal(after.prototypes.vectors[word], vector)
        if before.prompts is not None:
            np.testing.assert_array_equal(after.prompts.tokens, before.prompts.tokens)


def test_saving_warns_of_a_shift_that_the_folder_does_not_keep_and_the_import_says_which_it_takes(
    folders, tmp_path, capsys
) -> None:
    pipe = load(folders["text"])
    kept = pipe.scheduler.config.shift
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pipe.save_pretrained(tmp_path / "plain")
    pipe.scheduler.set_shift(kept + 2)
    with pytest.warns(UserWarning, match=rf"shift is saved as {kept:g}: set_shift\({kept + 2:g}\) is no part"):
        pipe.save_pretrained(tmp_path / "set")
    assert export.main(["from-torch", str(tmp_path / "set"), "--out", str(tmp_path / "home")]) == 0
    assert f"shift {kept:g} of scheduler_config.json" in " ".join(capsys.readouterr().err.split())
    assert TrainedModel.load(tmp_path / "home").config.flow.shift == kept


def test_a_variant_of_the_whole_folder_comes_home_if_it_is_named(folders, tmp_path, capsys) -> None:
    load(folders["faces"]).save_pretrained(tmp_path / "saved", variant="fp16")
    arguments = ["from-torch", str(tmp_path / "saved"), "--out", str(tmp_path / "home")]
    assert export.main(arguments) == 1
    said = capsys.readouterr().err
    assert "error: --variant: " in said
    assert "has weights of the variant fp16 alone" in said
    assert not (tmp_path / "home").exists()
    assert export.main([*arguments, "--variant", "fp16"]) == 0
    from_torch(folders["faces"], tmp_path / "plain")
    expected, found = (parameters(TrainedModel.load(tmp_path / name)) for name in ("plain", "home"))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("kind", ["text", "faces"])
def test_what_pytorch_trains_comes_home(folders, kind, tmp_path) -> None:
    pipe = load(folders[kind])
    transformer, adapter = pipe.transformer.train(), pipe.adapter.train()
    channels, side = transformer.config.in_channels, transformer.config.sample_size
    torch.manual_seed(0)
    latents, reference = torch.randn(2, channels, side, side), torch.randn(1, 1, channels, side, side)
    vectors = torch.rand(1, 2, adapter.config.expression_width)
    face = torch.nn.functional.normalize(torch.randn(1, 1, 256), dim=-1) if kind == "faces" else None
    positions = transformer.pos_embed.cropped_pos_embed(side, side)
    registers = adapter.config.register_tokens
    text = torch.eye(registers).expand(2, -1, -1) if registers else torch.randn(2, 6, 12)
    pooled = torch.zeros(2, 1) if registers else torch.randn(2, 8)
    trained = [*transformer.parameters(), *adapter.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    adapter.condition(transformer, adapter(reference, positions, vectors, face))
    transformer(latents, text, pooled, torch.tensor([500.0, 500.0]), return_dict=False)[0].square().mean().backward()
    # The null tokens take part only where a condition is dropped.
    without = [n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == ["identity_projector.null", "expression_projector.null"]
    optimizer.step()
    pipe.save_pretrained(tmp_path / "trained")
    again = load(tmp_path / "trained", folders[kind])
    size = side * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    given = {"image": to_pil(np.full((size, size, 3), 120, np.uint8)), "expressions": "joy, anger"}
    given |= {"num_inference_steps": 2, "output_type": "latent", "guidance_identity": 1.5}
    assert not torch.allclose(
        again.run(**given).get("latents"), load(folders[kind]).run(**given).get("latents"), atol=1e-3
    )
    from_torch(tmp_path / "trained", tmp_path / "home")
    home = TrainedModel.load(tmp_path / "home")
    settings = SamplingConfig(steps=2, seed=7)
    record, ours = collect(home, [Case("case", 1, settings)])
    given = {"image": [to_pil(ours["case.reference"][0])], "expressions": record["cases"][0]["expressions"]}
    found = again.run(**given, **pipeline_settings(settings), output_type="latent").get("latents")
    np.testing.assert_allclose(found, ours["case.latents"], atol=1e-4)
    assert home.step == json.loads((folders[kind] / "adapter/config.json").read_text())["run"]["step"]


def test_an_exported_pipeline_takes_the_lora_file_of_a_training(tmp_path) -> None:
    pytest.importorskip("peft")
    config = run_config(LoraConfig(rank=2, alpha=6.0))
    parameters = save_run(tmp_path / "lora", config)
    base = {name: value for name, value in parameters.items() if not name.endswith(("lora_a", "lora_b"))}
    save_run(tmp_path / "base", run_config(), parameters=base)
    for name in ("lora", "base"):
        save_prompts(tmp_path / name, config)
        export_diffusers(tmp_path / name, tmp_path / f"{name}_exported", cases=())
    export_lora(tmp_path / "lora", tmp_path / "additions.safetensors")
    given = {"image": to_pil(np.full((16, 16, 3), 120, np.uint8)), "expressions": "joy, anger"}
    given |= {"num_inference_steps": 2, "output_type": "latent"}
    expected = load(tmp_path / "lora_exported").run(**given).get("latents")
    pipe = load(tmp_path / "base_exported")
    assert not torch.allclose(pipe.run(**given).get("latents"), expected, atol=1e-3)
    pipe.load_lora_weights(tmp_path, weight_name="additions.safetensors")
    torch.testing.assert_close(pipe.run(**given).get("latents"), expected, atol=1e-4, rtol=0)


def test_gradients_through_consistent_attention_are_those_of_brute_force(pipes) -> None:
    from genaffect_jax.interop.torch.genaffect_modeling import Sharing, consistent_attention

    torch.manual_seed(1)
    groups, images, length, words = 2, 3, 6, 2

    def stream(tokens):
        return [torch.randn(groups * images, 2, tokens, 4, dtype=torch.float64) for _ in range(3)]

    image, text = stream(length), stream(words)
    leaves = [x.requires_grad_() for x in (*image, *text)]
    sharing = Sharing(torch.tensor([4, 1]), torch.tensor([0, 2, 3, 5]), 2)

    def brute_force():
        (q, k, v), (tq, tk, tv) = image, text
        outs = []
        for g, i in itertools.product(range(groups), range(images)):
            row = g * images + i
            own = sharing.own if i < sharing.anchors else torch.arange(length)
            anchors = [g * images + a for a in range(sharing.anchors)]
            key = torch.cat([k[row][:, own], tk[row], *(k[a][:, sharing.shared] for a in anchors)], dim=1)
            value = torch.cat([v[row][:, own], tv[row], *(v[a][:, sharing.shared] for a in anchors)], dim=1)
            scores = torch.cat([q[row], tq[row]], dim=1) @ key.mT * 4**-0.5
            outs.append(scores.softmax(-1) @ value)
        return torch.stack(outs)

    results = []
    for function in (lambda: consistent_attention(image, text, sharing, groups), brute_force):
        out = function()
        grads = torch.autograd.grad(out.cos().sum(), leaves)
        results.append([out.detach(), *grads])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        fused = consistent_attention([x.float() for x in image], [x.float() for x in text], sharing, groups)
    torch.testing.assert_close(fused.double(), results[1][0], atol=1e-5, rtol=1e-4)


def test_so_little_consistency_that_no_token_is_shared_is_none(pipes) -> None:
    given = {"image": to_pil(np.full((32, 32, 3), 90, np.uint8)), "expressions": "joy, anger", "output_type": "latent"}
    found, expected = (
        pipes["avatar"].run(**given, num_inference_steps=2, consistency=consistency).get("latents")
        for consistency in (0.005, 0.0)
    )
    assert torch.equal(found, expected)


def test_sharing_ends_with_its_set(pipes) -> None:
    pipe = pipes["avatar"]
    pipe.run(
        image=to_pil(np.zeros((32, 32, 3), np.uint8)), expressions="joy, anger", num_inference_steps=1, consistency=0.5
    )
    processors = [block.attn.processor for block in pipe.transformer.transformer_blocks]
    assert all(processor.sharing is not None for processor in processors)
    vectors = torch.rand(1, 2, pipe.adapter.config.expression_width)
    positions = pipe.transformer.pos_embed.cropped_pos_embed(8, 8)
    pipe.adapter.condition(pipe.transformer, pipe.adapter(torch.randn(1, 1, 4, 8, 8), positions, vectors))
    assert all(processor.sharing is None for processor in processors)


def test_unknown_settings_and_missing_encoders_are_named(pipes) -> None:
    image = to_pil(np.zeros((32, 32, 3), np.uint8))
    for setting in ({"chunk": 0}, {"num_inference_steps": 0}, {"consistency": 1.5}, {"consistency": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}=.*must lie in"):
            pipes["avatar"](image, "joy", **setting)
    with pytest.raises(TypeError, match=r"unknown settings \['guidance'\]"):
        pipes["avatar"](image, "joy", guidance=2.0)
    with pytest.raises(ValueError, match=r"face\.png.*no encoder"):
        pipes["avatar"](image, "face.png")
    with pytest.raises(ValueError, match="joyful"):
        pipes["avatar"](image, "joyful")
