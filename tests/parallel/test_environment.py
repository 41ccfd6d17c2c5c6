"""What the bits of a training depend on beside the program."""

import importlib.metadata
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from genaffect_jax.config import MeshConfig
from genaffect_jax.parallel import environment
from genaffect_jax.parallel.environment import describe_environment
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.version import __version__


def test_devices_mesh_libraries_processor_and_settings_are_named():
    found = describe_environment(make_mesh(MeshConfig(data=2, fsdp=4)))
    device = jax.devices()[0]
    assert found["platform"] == "cpu"
    assert found["device_kind"] == device.device_kind
    assert found["platform_version"] == device.client.platform_version
    assert [found[f"mesh.{axis}"] for axis in ("data", "fsdp", "tensor")] == [2, 4, 1]
    assert (found["devices"], found["processes"]) == (8, 1)
    assert found["processor"]
    assert found["processor.threads"] >= 1
    assert found["version.genaffect_jax"] == __version__
    for library in ("jax", "jaxlib", "flax", "optax", "numpy", "pillow"):
        assert found[f"version.{library}"] == importlib.metadata.version(library)
    assert found["variable.XLA_FLAGS"].startswith("--xla")


def test_a_setting_of_jax_that_changes_bits_changes_the_environment():
    mesh = make_mesh(MeshConfig())
    before = describe_environment(mesh)
    with jax.default_matmul_precision("highest"):
        assert describe_environment(mesh) != before
    assert describe_environment(mesh) == before


@pytest.mark.parametrize("name", ["PJRT_NPROC", "NPROC"])
def test_on_cpus_the_variables_that_set_the_number_of_threads_count(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert describe_environment(make_mesh(MeshConfig()))[f"variable.{name}"] == "1"


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_on_accelerators_their_libraries_count_and_the_number_of_threads_does_not(monkeypatch, platform):
    client = SimpleNamespace(platform_version="PJRT C API\ncuda 13000")
    device = SimpleNamespace(platform=platform, device_kind="NVIDIA H200", client=client)
    mesh = SimpleNamespace(size=1, devices=np.array([device]), shape={"data": 1})
    packages = {
        "nvidia-cudnn-cu13": "9.15",
        "jax-cuda13-plugin": "0.11.2",
        "libtpu": "0.1",
        "rich": "14",
        "jax": "0.11",
    }
    installed = [SimpleNamespace(metadata={"Name": name}, version=version) for name, version in packages.items()]
    monkeypatch.setattr(environment, "distributions", lambda: installed)
    monkeypatch.setenv("NPROC", "1")
    found = describe_environment(mesh)
    assert found["platform_version"] == client.platform_version
    assert not {"processor.threads", "variable.NPROC"} & found.keys()
    del packages["rich"]
    versions = {name: value for name, value in found.items() if name.startswith("version.")}
    assert versions == {"version.genaffect_jax": __version__, **{f"version.{n}": v for n, v in packages.items()}}
