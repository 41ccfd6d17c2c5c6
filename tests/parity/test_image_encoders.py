"""CLIP and DINO from folders: what transformers computes, and clear errors for folders that do not fit."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from support.tiny_sd3 import clip_tokenizer, shake  # noqa: E402

from genaffect_jax import evaluate as command  # noqa: E402
from genaffect_jax.errors import ConfigError, WeightsError  # noqa: E402
from genaffect_jax.evaluation.figures import evaluate  # noqa: E402
from genaffect_jax.evaluation.procedural_people import ProceduralPeople, true_images  # noqa: E402
from genaffect_jax.evaluation.protocol import Protocol, word_names, word_vectors  # noqa: E402
from genaffect_jax.evaluation.readings import Evaluators, read_person  # noqa: E402
from genaffect_jax.evaluation.similarity import (  # noqa: E402
    PROMPT,
    SimilarityEncoders,
    load_similarity_encoders,
    with_similarity,
)
from genaffect_jax.interop.image_encoders import ClipEncoder, DinoEncoder  # noqa: E402
from genaffect_jax.io.weight_file import checksum  # noqa: E402
from genaffect_jax.metrics.similarity import clip_score  # noqa: E402
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder  # noqa: E402

SIDE, WORDS = 40, ("joy", "anger", "sadness")
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
INTERMEDIATE = {"intermediate_size": 48}  # DINOv2 has a ratio
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def save_clip(folder):
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "raw", ["f a", "fa c", "fac e</w>"])
    tokenizer.save_pretrained(folder)
    sizes = {name: size for name, size in (VIT | INTERMEDIATE).items() if name != "patch_size"}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": len(tokenizer), "eos_token_id": len(tokenizer) - 1, "bos_token_id": 0},
        vision_config={**VIT, **INTERMEDIATE, "image_size": 32},
        projection_dim=16,
    )
    model = transformers.CLIPModel(config).eval()
    for part in (model.text_model, model.vision_model, model.text_projection, model.visual_projection):
        shake(part)
    model.save_pretrained(folder)
    save_processor(folder, "CLIPImageProcessor")
    return model


def save_processor(folder, kind, size=32):
    settings = {
        "image_processor_type": kind,
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
        **{"size": {"shortest_edge": size}, "resample": 3, "crop_size": {"height": 32, "width": 32}},
        **{"rescale_factor": 1 / 255, "image_mean": MEAN, "image_std": STD},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def save_dino(folder, kind):
    torch.manual_seed(1)
    sizes = {**VIT, "image_size": 32}
    configs = {
        "vit": lambda: transformers.ViTConfig(**sizes, **INTERMEDIATE),
        "dinov2": lambda: transformers.Dinov2Config(**sizes),
        "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersConfig(**sizes),
        "dinov3_vit": lambda: transformers.DINOv3ViTConfig(**sizes, **INTERMEDIATE, num_register_tokens=2),
    }
    model = shake(transformers.AutoModel.from_config(configs[kind]()))
    model.save_pretrained(folder)
    save_processor(folder, "BitImageProcessor")
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A random CLIP model, and its folder."""
    folder = tmp_path_factory.mktemp("clip")
    return save_clip(folder), folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A random DINOv2 model, and its folder."""
    folder = tmp_path_factory.mktemp("dino")
    return save_dino(folder, "dinov2"), folder


@pytest.fixture
def clip_copy(clip, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(clip[1], tmp_path / "copy")


@pytest.fixture
def dino_copy(dino, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(dino[1], tmp_path / "copy")


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def pixels_of(x, side=32):
    """The preprocessing of the folders, written out: shortest edge to `side`, the colours scaled and normalised."""
    resized = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in x]
    scaled = (np.stack(resized).astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return torch.tensor(scaled).permute(0, 3, 1, 2)


@torch.inference_mode()
def test_the_clip_score_is_that_of_the_forward_pass_of_transformers(clip):
    model, folder = clip
    encoder, x = ClipEncoder(folder), images(20)  # more than one batch
    texts = [PROMPT.format(word=word) for word in WORDS]
    tokens = transformers.CLIPTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    output = model(pixel_values=pixels_of(x), **tokens)
    cosines = (output.logits_per_image / model.logit_scale.exp()).numpy()
    found = encoder.images(x) @ encoder.texts(texts).T
    np.testing.assert_allclose(found, cosines, rtol=0, atol=1e-5)
    assert np.ptp(cosines, axis=1).min() > 1e-3  # the words show
    np.testing.assert_allclose(clip_score(found), 2.5 * np.maximum(cosines, 0), rtol=0, atol=3e-5)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers", "dinov3_vit"])
@torch.inference_mode()
def test_dino_embeddings_are_the_class_tokens_of_transformers(kind, tmp_path):
    model, x = save_dino(tmp_path, kind), images(5)
    tokens = model(pixel_values=pixels_of(x)).last_hidden_state
    expected = torch.nn.functional.normalize(tokens[:, 0], dim=-1).numpy()
    found = DinoEncoder(tmp_path).images(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(expected @ expected.T - 1).max() > 1e-4  # the images show


def test_the_description_has_network_checksum_and_preprocessing(clip, dino, dino_copy):
    description = ClipEncoder(clip[1]).description
    assert description.startswith(f"CLIPModel {checksum(clip[1] / 'model.safetensors')[:12]} (width 24, patch 8; ")
    assert "resize shortest_edge=32 bicubic, center_crop height=32/width=32" in description
    assert "normalize 0.5/0.4/0.3 0.2/0.3/0.25" in description
    before = DinoEncoder(dino[1]).description
    assert before == DinoEncoder(dino_copy).description  # wherever the folder lies
    save_processor(dino_copy, "BitImageProcessor", size=40)
    assert before != DinoEncoder(dino_copy).description


def test_weights_in_several_files_give_the_same_embeddings(dino, tmp_path):
    shutil.copy(dino[1] / "preprocessor_config.json", tmp_path)
    dino[0].save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    parts, whole = DinoEncoder(tmp_path), DinoEncoder(dino[1])
    np.testing.assert_array_equal(parts.images(images(2)), whole.images(images(2)))


def test_a_vision_transformer_without_pooler_is_read(tmp_path):
    model = save_dino(tmp_path, "vit")
    without = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if not k.startswith("pooler.")}
    whole = DinoEncoder(tmp_path).images(images(2))
    save_file(without, tmp_path / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(DinoEncoder(tmp_path).images(images(2)), whole)
    assert model.pooler is not None


# An evaluation with both

PROTOCOL = Protocol(people=3, expressions=3, dial_people=0)
PEOPLE = ProceduralPeople(PROTOCOL)


def figures_of(encoders, images_of):
    """The figures of a model that answers each person with `images_of(person, vectors)`."""
    evaluators = Evaluators(
        load_identity_encoder("package:identity_evaluator"), load_expression_encoder("package:expression_evaluator")
    )

    def read(person):
        vectors = word_vectors(PROTOCOL.words(person))
        made, truth = images_of(person, vectors), true_images(person, vectors, SIDE)
        readings = read_person(person, PEOPLE, evaluators, made, truth, made[:0])
        return with_similarity(readings, encoders, made, truth)

    return evaluate([read(person) for person in range(PROTOCOL.people)], PEOPLE).figures


def test_true_images_have_the_ceiling_and_planted_failures_the_floor(clip, dino):
    encoders = load_similarity_encoders(clip[1], dino[1])
    perfect = figures_of(encoders, lambda person, vectors: true_images(person, vectors, SIDE))
    for name in ("clip_score", "dino_consistency"):
        assert perfect[name].value.value == pytest.approx(perfect[name].ceiling, abs=1e-6), name
        assert len(perfect[name].by_person) == 3

    def shuffled(person, vectors):
        return true_images(person, np.roll(vectors, 1, axis=0), SIDE)

    found = figures_of(encoders, shuffled)
    assert found["clip_score"].value.value == pytest.approx(perfect["clip_score"].floor, abs=1e-5)
    assert found["clip_score"].value.value != pytest.approx(perfect["clip_score"].ceiling, abs=1e-5)

    def another_person_each(person, vectors):
        return np.concatenate([true_images((person + i) % 3, v[None], SIDE) for i, v in enumerate(vectors)])

    found = figures_of(encoders, another_person_each)["dino_consistency"]
    assert found.value.value == pytest.approx(found.floor, abs=0.5 * (found.ceiling - found.floor))


def test_the_score_of_an_image_is_of_its_own_word(clip):
    encoder = ClipEncoder(clip[1])
    evaluated = figures_of(SimilarityEncoders(encoder), lambda person, vectors: true_images(person, vectors, SIDE))
    names, words = word_names(), PROTOCOL.words(0)
    x = true_images(0, word_vectors(words), SIDE)
    texts = encoder.texts([PROMPT.format(word=names[i]) for i in words])
    own = clip_score((encoder.images(x) * texts).sum(-1)).mean()
    assert evaluated["clip_score"].by_person[0] == pytest.approx(own, abs=1e-6)
    assert "dino_consistency" not in evaluated


# Folders that do not fit


def test_a_folder_of_another_network_or_none_is_refused(clip, dino, tmp_path):
    with pytest.raises(ConfigError, match=r"clip=.*holds a model of type dinov2, must be clip"):
        ClipEncoder(dino[1])
    with pytest.raises(ConfigError, match=r"dino=.*holds a model of type clip, must be vit or dinov2 or"):
        DinoEncoder(clip[1])
    for kind, option in ((ClipEncoder, "clip"), (DinoEncoder, "dino")):
        with pytest.raises(ConfigError, match=f"{option}=.*: no such folder"):
            kind(tmp_path / "none")
        with pytest.raises(WeightsError, match=r"config\.json: not readable as a model's configuration"):
            kind(tmp_path)


def test_missing_files_are_named(clip_copy):
    shutil.move(clip_copy / "preprocessor_config.json", clip_copy / "kept.json")
    with pytest.raises(WeightsError, match=r"no image processor; put the model's preprocessor_config\.json there"):
        ClipEncoder(clip_copy)
    shutil.move(clip_copy / "kept.json", clip_copy / "preprocessor_config.json")
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):
        (clip_copy / file).unlink(missing_ok=True)
    with pytest.raises(WeightsError, match=r"no tokenizer; put tokenizer\.json, or vocab\.json and merges\.txt"):
        ClipEncoder(clip_copy)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_processor_that_needs_torchvision_says_so(dino_copy):
    save_processor(dino_copy, "DINOv3ViTImageProcessorFast")
    with pytest.raises(WeightsError, match=r"its image processor needs torchvision: pip install torchvision$"):
        DinoEncoder(dino_copy)


def test_pickled_weights_are_not_read(dino, dino_copy):
    (dino_copy / "model.safetensors").unlink()
    torch.save(dino[0].state_dict(), dino_copy / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="other formats are not read: save the model as safetensors"):
        DinoEncoder(dino_copy)


def test_weights_that_are_damaged_or_do_not_fit_are_named(dino_copy):
    weights = load_file(dino_copy / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "layernorm.bias"}, dino_copy / "model.safetensors")
    with pytest.raises(WeightsError, match=r"the weights do not fit config\.json: missing layernorm\.bias"):
        DinoEncoder(dino_copy)
    (dino_copy / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsError, match="not readable as a AutoModel"):
        DinoEncoder(dino_copy)


def test_without_pytorch_the_extra_is_named_and_needed_only_for_a_folder(dino, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "genaffect_jax.interop.image_encoders")
    with pytest.raises(WeightsError, match=r"install the extra: pip install -c constraints.txt -e '.\[torch\]'"):
        load_similarity_encoders(dino=dino[1])
    assert load_similarity_encoders() == SimilarityEncoders()


def test_the_command_names_the_option_of_a_folder_that_does_not_fit_before_it_loads_the_model(clip, tmp_path, capsys):
    argv = ["--model", str(tmp_path / "no run"), "--out", str(tmp_path / "out")]
    assert command.main([*argv, "--dino", str(clip[1])]) == 2
    assert f"--dino {clip[1]}: holds a model of type clip" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
