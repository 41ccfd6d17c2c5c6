"""A damaged newest checkpoint costs the steps since the one before, and nothing else."""

import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from support.training_runs import Numbered, Small, assert_equal_ends, rows, task, with_train

from genaffect_jax.checkpoints.frozen import FrozenParams
from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import MeshConfig
from genaffect_jax.errors import CheckpointError
from genaffect_jax.models.functional import Functional
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.loop import fit
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state


def train(config, workdir: Path, steps: int, out: Path, network=Small) -> str:
    """Trains up to a step with a checkpoint every second one, and gives what was printed."""
    config = with_train(config, steps=steps, checkpoint_every=2, schedule="constant")
    small = task(config, Numbered(), network=network)
    with out.open("w") as file:
        fit(small, config.train, make_mesh(MeshConfig()), RunDir(workdir), Console(file=file, width=400))
    return out.read_text()


def data_files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("d/*") if file.is_file()]


def cut_off(folder: Path) -> None:
    # All files, and most of each: some of it is what was replaced later, and nobody reads that.
    for file in data_files(folder):
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size // 10)


def cut_off_the_arrays(folder: Path) -> None:
    # What lists them, in `parameters/d`, stays whole: then orbax raises no more than an `Exception`.
    for process in (folder / "parameters").glob("ocdbt.process_*"):
        cut_off(process)


def lose_a_shard(folder: Path) -> None:
    for file in data_files(folder / "parameters"):
        file.unlink()


def lose_an_item(folder: Path) -> None:
    shutil.rmtree(folder / "optimizer")


def empty_the_position(folder: Path) -> None:
    for file in (folder / "position").rglob("*"):
        if file.is_file():
            file.write_text("")


@pytest.fixture(scope="module")
def saved(tiny_config, tmp_path_factory):
    """A run of four steps, whose checkpoints are those of step 2 and 4, and the same run to step 6 undisturbed."""
    folder = tmp_path_factory.mktemp("saved")
    train(tiny_config, folder / "four", 4, folder / "out")
    shutil.copytree(folder / "four", folder / "six")
    train(tiny_config, folder / "six", 6, folder / "out")
    return folder


@pytest.mark.parametrize("damage", [cut_off, cut_off_the_arrays, lose_a_shard, lose_an_item, empty_the_position])
def test_training_goes_back_one_checkpoint_and_ends_where_it_would_have(tiny_config, saved, tmp_path, damage) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved / "four", workdir)
    damage(workdir / "checkpoints" / "4")
    said = train(tiny_config, workdir, 6, tmp_path / "out")
    assert "checkpoints/4 is damaged" in said
    assert "going back to step 2" in said
    assert "continuing at step 2 of 6" in said
    assert [d.name for d in (workdir / "damaged").iterdir()] == ["4"]
    config = with_train(tiny_config, steps=6, schedule="constant")
    assert_equal_ends(config, workdir, saved / "six")
    steps = [row["step"] for row in rows(workdir)]
    assert steps == sorted(set(steps))


def test_sampling_goes_back_too_and_moves_nothing(tiny_config, saved, tmp_path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved / "four", workdir)
    cut_off(workdir / "checkpoints" / "4" / "ema")
    checkpoints = Checkpoints(workdir)
    network = Functional(Small)
    with pytest.warns(UserWarning, match=r"checkpoints/4 is damaged .*going back to step 2"):
        found = checkpoints.averaged_parameters(network, make_mesh(MeshConfig()))
    assert checkpoints.latest_step() == 2
    assert (workdir / "checkpoints" / "4").is_dir()
    shutil.rmtree(workdir / "checkpoints" / "4")
    expected = Checkpoints(workdir).averaged_parameters(network, make_mesh(MeshConfig()))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_half_written_checkpoint_is_not_there(tiny_config, saved, tmp_path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved / "four", workdir)
    (workdir / "checkpoints" / "4").rename(workdir / "checkpoints" / "4.orbax-checkpoint-tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Checkpoints(workdir).latest_step() == 2


def test_if_all_are_damaged_nothing_is_moved_and_the_newest_is_named(tiny_config, saved, tmp_path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved / "four", workdir)
    for step in (2, 4):
        cut_off(workdir / "checkpoints" / str(step))
    with pytest.raises(CheckpointError, match=r"checkpoints/4: does not fit this configuration, or is damaged"):
        train(tiny_config, workdir, 6, tmp_path / "out")
    assert sorted(d.name for d in (workdir / "checkpoints").iterdir()) == ["2", "4"]


def test_another_model_is_an_error_and_no_damage(tiny_config, saved, tmp_path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved / "four", workdir)
    with pytest.raises(CheckpointError, match=r"checkpoints/4: does not fit this configuration"):
        train(tiny_config, workdir, 6, tmp_path / "out", lambda rngs: Small(rngs, width=64))
    assert not (workdir / "damaged").exists()


def files_of_items(folder: Path) -> list[Path]:
    return [file for item in folder.iterdir() if item.is_dir() for file in sorted(item.rglob("*")) if file.is_file()]


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


def test_every_flipped_bit_of_a_checkpoint_is_found(tiny_config, saved, tmp_path) -> None:
    network, mesh = Functional(Small), make_mesh(MeshConfig())
    abstract = abstract_state(network, make_optimizer(tiny_config.train), mesh)
    newest = saved / "four" / "checkpoints" / "4"
    damaged = files_of_items(newest)
    assert {file.relative_to(newest).parts[0] for file in damaged} == {
        "parameters",
        "ema",
        "optimizer",
        "position",
        "config",
    }
    rng = np.random.default_rng(0)
    for file in damaged:
        if not file.stat().st_size:
            continue
        workdir = tmp_path / "run"
        shutil.copytree(saved / "four", workdir)
        name = file.relative_to(newest)
        flip(workdir / "checkpoints" / "4" / name, rng.random())
        checkpoints = Checkpoints(workdir)
        read = {
            "config": checkpoints.config,
            "ema": lambda: checkpoints.averaged_parameters(network, mesh),  # noqa: B023 (called at once)
        }.get(name.parts[0], lambda: checkpoints.restore(abstract))  # noqa: B023
        with pytest.warns(UserWarning, match=rf"{name}: the content is not what was written .*back to step 2"):
            read()
        shutil.rmtree(workdir)


def test_a_checkpoint_under_the_name_of_another_step_is_damage(tiny_config, saved, tmp_path) -> None:
    network, mesh = Functional(Small), make_mesh(MeshConfig())
    workdir = tmp_path / "run"
    shutil.copytree(saved / "four", workdir)
    folder = workdir / "checkpoints"
    (folder / "4").rename(folder / "9")
    with pytest.warns(UserWarning, match=r"9: is the checkpoint of step 4 under another name.*going back to step 2"):
        Checkpoints(workdir).averaged_parameters(network, mesh)
    (folder / "2").rename(folder / "4")
    (folder / "9").rename(folder / "2")
    for step in ("2", "4"):
        checkpoints = Checkpoints(workdir)
        with pytest.raises(CheckpointError, match="under another name"):
            checkpoints.averaged_parameters(network, mesh, checkpoints.step(step))


def test_checkpoints_of_earlier_versions_have_no_digests_and_are_read(tiny_config, saved, tmp_path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved / "four", workdir)
    records = list(workdir.rglob("digests.json"))
    assert [record.parent.name for record in sorted(records)] == ["2", "4"]
    for record in records:
        record.unlink()
    said = train(tiny_config, workdir, 6, tmp_path / "out")
    assert "damaged" not in said
    assert_equal_ends(with_train(tiny_config, steps=6, schedule="constant"), workdir, saved / "six")


@pytest.mark.parametrize("damage", ["flip", "record", "lost", "metadata", "folder"])
def test_damaged_frozen_parameters_are_one_error_that_names_them(tmp_path, damage) -> None:
    network, mesh = Functional(Small), make_mesh(MeshConfig())
    parameters = network.init(jax.random.key(0))
    frozen = {name: value for name, value in parameters.items() if name.startswith("up")}
    trained = {name: value for name, value in parameters.items() if name not in frozen}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_for_sampling(1, trained, frozen, "{}")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.averaged_parameters(network, mesh).keys() == parameters.keys()
    run_dir = RunDir(tmp_path)
    file = max(run_dir.frozen_params.rglob("*"), key=lambda file: file.stat().st_size)
    if damage == "flip":
        flip(file, 0.5)
    elif damage == "record":
        file = run_dir.digests
        file.write_text("{ torn")
    elif damage == "lost":
        file.unlink()
    elif damage == "metadata":  # of a folder without digests
        run_dir.digests.unlink()
        file = run_dir.frozen_params
        for metadata in file.glob("_*"):
            metadata.write_text("{}")
    else:
        file.unlink()
        file.mkdir()
    with pytest.raises(CheckpointError) as raised:
        Checkpoints(tmp_path).averaged_parameters(network, mesh)
    assert str(file) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_frozen_parameters_of_an_earlier_start_do_not_stay_in_a_run_without(tmp_path) -> None:
    network, mesh = Functional(Small), make_mesh(MeshConfig())
    parameters = network.init(jax.random.key(0))
    FrozenParams(RunDir(tmp_path)).save({"up.kernel": parameters["up.kernel"] + 1})  # and then it was killed
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_for_sampling(1, parameters, {}, "{}")
    found = Checkpoints(tmp_path).averaged_parameters(network, mesh)
    np.testing.assert_array_equal(found["up.kernel"], parameters["up.kernel"])
