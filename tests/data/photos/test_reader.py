"""Photo files through insightface's own code, with a detector that reads marked faces."""

import json
import shutil

import numpy as np
import onnx
import pytest
from PIL import Image
from support.arcface_models import random_state, write_onnx
from support.face_detectors import photo, points_of, write_detector

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config.encoders import ARCFACE_CROP
from genaffect_jax.data.face_encoders import IdentityEncoder
from genaffect_jax.data.photos.face_analysis import FaceFinder, InsightFaceEncoder
from genaffect_jax.data.photos.reader import PhotoAligner, PhotoReader
from genaffect_jax.data.sources.folder import open_folder
from genaffect_jax.errors import ConfigError, DataError
from genaffect_jax.interop.arcface.weights import convert_arcface
from genaffect_jax.io.images import read_image
from genaffect_jax.io.weight_file import checksum
from genaffect_jax.models.face_encoders.encoder import load_identity_encoder
from genaffect_jax.prepare import __main__ as prepare

SIZE = 128
LARGE, SMALL = ((420.0, 250.0), 200.0), ((130.0, 200.0), 120.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An insightface root with one pack: the detector and a small random recognition model."""
    root = tmp_path_factory.mktemp("insightface")
    write_detector(root / "models" / "tiny" / "det.onnx")
    state = random_state((1, 1, 1, 1), (8, 8, 16, 16), width=16)
    write_onnx(state, root / "models" / "tiny" / "rec.onnx", folded=True)
    return root


@pytest.fixture(scope="module")
def aligner(models):
    return PhotoAligner(models)


@pytest.fixture(scope="module")
def any_image(tmp_path_factory):
    """An aligner to which every image is one face."""
    root = tmp_path_factory.mktemp("whole")
    write_detector(root / "det.onnx", whole_image=True)
    return PhotoAligner(root)


def saved(folder, image, name="photo.png", **options):
    Image.fromarray(image).save(folder / name, **options)
    return folder / name


def assert_aligned(image, tolerance=8):
    """The painted face fills ArcFace's square, upright."""
    size = len(image)
    share = (np.arange(size) + 0.5) / size
    inner = slice(size // 4, size - size // 4)
    wanted = 255 * (share[inner] - ARCFACE_CROP[0]) / ARCFACE_CROP[2]
    found = image[inner, inner].astype(float)
    assert np.abs(found[..., 0] - wanted).max() < tolerance
    assert np.abs(found[..., 1] - wanted[:, None]).max() < tolerance


def test_faces_are_found_where_they_are_the_largest_first(models):
    faces = FaceFinder(models)(photo(480, 640, SMALL, LARGE))
    assert len(faces) == 2
    for face, painted in zip(faces, (LARGE, SMALL), strict=True):
        np.testing.assert_allclose(face.points, points_of(*painted), atol=2.5)
        np.testing.assert_allclose(face.box[2] - face.box[0], painted[1], rtol=0.05)
        assert 0.5 < face.score <= 1


def test_of_several_faces_the_largest_or_the_chosen_one_is_aligned(aligner, models, tmp_path):
    path = saved(tmp_path, photo(480, 640, SMALL, LARGE))
    aligned = aligner(path, SIZE)
    assert_aligned(aligned.image)
    assert (aligned.faces, aligned.face_side) == (2, pytest.approx(200, rel=0.05))
    second = PhotoAligner(models, face_index=1)(path, SIZE)
    assert_aligned(second.image)
    assert second.face_side == pytest.approx(120, rel=0.05)
    with pytest.raises(DataError, match=r"face_index 2: 2 found, .*0: \d+ x \d+ px at .*; 1: \d+ x \d+ px at"):
        aligner(path, SIZE, face_index=2)


def test_a_photo_without_a_face_says_so_and_names_the_way_out(aligner, tmp_path):
    with pytest.raises(DataError, match=r"no face found in 200 x 100 pixels .*set align to 'none'"):
        aligner(saved(tmp_path, photo(100, 200)), SIZE)


def test_a_tiny_face_is_refused_unless_allowed(aligner, models, tmp_path):
    path = saved(tmp_path, photo(90, 120, ((60.0, 45.0), 22.0)))
    with pytest.raises(DataError, match=r"too small: its square of eyes, nose and mouth is 2\d px wide, must be .* 28"):
        aligner(path, SIZE)
    assert_aligned(PhotoAligner(models, min_face=10)(path, SIZE).image, tolerance=20)


def test_a_tilted_face_is_turned_upright(aligner, tmp_path):
    assert_aligned(aligner(saved(tmp_path, photo(480, 480, ((240.0, 240.0), 180.0, 35.0))), SIZE).image)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_turned_by_exif_are_turned_back_first(aligner, tmp_path, orientation):
    image = Image.fromarray(photo(400, 520, ((300.0, 180.0), 150.0)))
    stored = {1: 0, 3: 180, 6: 90, 8: 270}[orientation]  # counter-clockwise; EXIF says how to turn it back
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.rotate(stored, expand=True).save(tmp_path / "photo.png", exif=exif)
    aligned = aligner(tmp_path / "photo.png", SIZE)
    assert_aligned(aligned.image)
    np.testing.assert_allclose(aligned.face.points, points_of((300.0, 180.0), 150.0), atol=2.5)


def test_grey_16_bit_and_transparent_photos_are_aligned_as_their_rgb_versions(any_image, tmp_path):
    rng = np.random.default_rng(0)
    grey = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).resize((150, 150)))
    expected = any_image(saved(tmp_path, np.repeat(grey[..., None], 3, -1)), SIZE).image
    assert expected.std() > 20
    for name, image in (("grey.png", grey), ("deep.png", grey.astype(np.uint16) * 257)):
        np.testing.assert_array_equal(any_image(saved(tmp_path, image, name), SIZE).image, expected)
    clear = np.dstack([grey, grey, grey, np.where(np.arange(150) < 75, 255, 0) * np.ones((150, 1))]).astype(np.uint8)
    on_white = np.repeat(grey[..., None], 3, -1)
    on_white[:, 75:] = 255
    white = any_image(saved(tmp_path, on_white, "white.png"), SIZE).image
    np.testing.assert_array_equal(any_image(saved(tmp_path, clear, "clear.png"), SIZE).image, white)


def test_without_alignment_an_image_is_read_as_it_is(tmp_path):
    path = saved(tmp_path, photo(100, 200))
    np.testing.assert_array_equal(PhotoReader("none")(path, 64), read_image(path, 64))
    np.testing.assert_array_equal(PhotoReader("none").largest(path, 64), read_image(path, 64))


def test_exemplars_show_their_largest_face_whatever_face_the_reference_is(models, tmp_path):
    path = saved(tmp_path, photo(480, 640, SMALL, LARGE))
    reader = PhotoReader("face", models, face_index=1)
    chosen, largest = reader(path, SIZE), reader.largest(path, SIZE)
    np.testing.assert_array_equal(largest, PhotoReader("face", models)(path, SIZE))
    assert np.abs(chosen.astype(int) - largest).max() > 50


def test_models_are_checked_before_insightface_could_download(models, tmp_path):
    (tmp_path / "empty").mkdir()
    write_onnx(random_state((1, 1, 1, 1), (8, 8, 16, 16), width=16), tmp_path / "rec.onnx", folded=True)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "det.onnx").write_bytes(b"not a model")
    for folder, words in (
        ("no", "no such folder"),
        ("empty", r"no .onnx files \(looked for"),
        ("torn", "cannot be loaded"),
        (".", "no face detector among rec.onnx"),
    ):
        with pytest.raises(ConfigError, match=words):
            FaceFinder(tmp_path / folder)
    with pytest.raises(ConfigError, match="face_models=None: align 'face' needs the folder"):
        PhotoReader("face")
    with pytest.raises(ConfigError, match="is not used if align is 'none'"):
        PhotoReader("none", models)
    with pytest.raises(ConfigError, match="face_index=1: needs align 'face'"):
        PhotoReader("none", face_index=1)


def test_face_models_whose_weights_lie_in_another_file_are_refused(models, tmp_path):
    shutil.copytree(models / "models" / "tiny", tmp_path / "pack")
    model = onnx.load(tmp_path / "pack" / "rec.onnx")
    onnx.save(model, tmp_path / "pack" / "rec.onnx", save_as_external_data=True, location="rec.data", size_threshold=0)
    FaceFinder(tmp_path / "pack")  # reads the detector alone
    with pytest.raises(
        ConfigError, match=r"face models .*pack: rec.onnx: its weights lie in other files \('rec.data'\)"
    ):
        InsightFaceEncoder(tmp_path / "pack", licence="none")


def test_insightfaces_embedding_equals_this_packages_of_the_aligned_image(models, aligner, tmp_path):
    encoder = InsightFaceEncoder(models, "random numbers")
    assert isinstance(encoder, IdentityEncoder)
    recognition = models / "models" / "tiny" / "rec.onnx"
    assert (encoder.name, encoder.width, encoder.licence) == ("insightface tiny/rec", 16, "random numbers")
    assert encoder.checksum == checksum(recognition)
    images = np.stack([photo(480, 480, ((230.0, 260.0), 190.0, 10.0)), photo(480, 480, ((200.0, 200.0), 150.0))])
    images[1, 150:250, 150:200] //= 2
    measured = encoder(images)
    np.testing.assert_allclose(np.linalg.norm(measured, axis=-1), 1, atol=1e-5)
    convert_arcface(recognition, tmp_path / "rec.safetensors", name="rec", licence="random numbers")
    ours = load_identity_encoder(str(tmp_path / "rec.safetensors"))
    aligned = np.stack([aligner(saved(tmp_path, p), 256).image for p in images])
    cosines = ours(aligned) @ measured.T
    assert np.diag(cosines).min() > 0.999
    assert cosines[0, 1] < 0.99  # else any image would do
    with pytest.raises(ValueError, match="no face found in image 1 of 2"):
        encoder(np.stack([images[0], photo(480, 480)]))


def test_a_folder_is_aligned_whole_and_stays_usable_for_training(models, tmp_path, capsys):
    for person in ("anna", "ben"):
        (tmp_path / "photos" / person).mkdir(parents=True)
        for i, word in enumerate(("joy", "anger", "fear")):
            saved(tmp_path / "photos" / person, photo(300, 300, ((150.0 + 5 * i, 140.0), 120.0)), f"{word}_1.png")
    saved(tmp_path / "photos" / "ben", photo(300, 300, ((150.0, 140.0), 120.0)), "joy_1.webp", lossless=True)
    saved(tmp_path / "photos" / "ben", photo(300, 300), "sadness.png")
    (tmp_path / "photos" / "ben" / "rage.png").write_bytes(b"torn")
    argv = ["--root", str(tmp_path / "photos"), "--out", str(tmp_path / "new"), "--models", str(models), "--size", "64"]
    assert prepare.main(["photos", *argv]) == 0
    assert "7 images (0 of photos with several faces), 2 files left out" in " ".join(capsys.readouterr().err.split())
    rejected = [json.loads(line) for line in (tmp_path / "new" / "rejected.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rejected] == ["ben/rage.png", "ben/sadness.png"]
    assert "no face found" in rejected[1]["reason"]
    rows = [json.loads(line) for line in (tmp_path / "new" / "aligned.jsonl").read_text().splitlines()]
    assert {row["source"]: row["file"] for row in rows}["ben/joy_1.webp"] == "ben/joy_2.png"
    assert rows[0]["faces"] == 1
    assert rows[0]["inside"] == 1.0
    source = open_folder(tmp_path / "new", 64, 0.0, RunDir(tmp_path / "work"))
    assert sorted({(p.identity, p.label) for p in source.examples}) == [
        (person, word) for person in ("anna", "ben") for word in ("anger", "fear", "joy")
    ]
    for i in range(len(source.examples)):
        assert_aligned(source.load(i))
    assert prepare.main(["photos", *argv]) == 2
    assert "exists; name a new folder" in capsys.readouterr().err


def test_a_folder_with_metadata_gets_new_metadata(models, tmp_path):
    (tmp_path / "photos").mkdir()
    rows = ["file,identity,expression"]
    for i, word in enumerate(("joy", "AU12=0.5", "fear")):
        saved(tmp_path / "photos", photo(300, 300, ((150.0, 140.0 + i), 120.0)), f"{i}.png")
        rows.append(f"{i}.png,anna,{word}")
    (tmp_path / "photos" / "metadata.csv").write_text("\n".join(rows))
    argv = ["--root", str(tmp_path / "photos"), "--out", str(tmp_path / "new"), "--models", str(models), "--size", "64"]
    assert prepare.main(["photos", *argv]) == 0
    source = open_folder(tmp_path / "new", 64, 0.0, RunDir(tmp_path / "work"))
    assert [(p.identity, p.label) for p in source.examples] == [("anna", "joy"), ("anna", "AU12=0.5"), ("anna", "fear")]


def test_a_folder_of_which_nothing_can_be_aligned_leaves_nothing_behind(models, tmp_path, capsys):
    (tmp_path / "photos" / "anna").mkdir(parents=True)
    saved(tmp_path / "photos" / "anna", photo(100, 100), "joy.png")
    argv = ["--root", str(tmp_path / "photos"), "--out", str(tmp_path / "new"), "--models", str(models)]
    assert prepare.main(["photos", *argv]) == 1
    assert "no photo could be aligned, of 1 files (anna/joy.png: no face found" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
