"""The sharding table raises on every mistake, and the state lies where it says."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from genaffect_jax.config import AutoencoderConfig, MeshConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional
from genaffect_jax.parallel import sharding
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import create_state


def test_a_mesh_that_does_not_use_every_device_is_refused():
    with pytest.raises(ConfigError, match=r"mesh\.data=3, mesh\.fsdp=2, mesh\.tensor=1: .* number of cpu devices, 8"):
        make_mesh(MeshConfig(data=3, fsdp=2))
    with pytest.raises(ConfigError, match=r"mesh\.fsdp=3"):
        make_mesh(MeshConfig(fsdp=3))


def test_one_mesh_axis_for_two_dimensions_is_a_collision():
    mesh = make_mesh(MeshConfig(fsdp=2))
    with pytest.raises(ValueError, match=r"w: mesh axis 'fsdp' is claimed by both 'embed' and 'conv_out'"):
        sharding.partition_spec(("embed", "conv_out"), (4, 4), mesh, "w")


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (("embed",), (5,), r"w: 'embed' of size 5 is not divisible by 2 devices"),
        (("width",), (4,), r"w: unknown logical axis 'width'"),
        (("embed",), (4, 4), r"w: logical axes \('embed',\) for shape \(4, 4\)"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes, shape, message):
    with pytest.raises(ValueError, match=message):
        sharding.partition_spec(axes, shape, make_mesh(MeshConfig(fsdp=2)), "w")


def test_every_large_matrix_and_its_moments_are_cut_over_fsdp(tiny_config):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    denoiser, _ = build_networks(tiny_config.model)
    state = create_state(denoiser, make_optimizer(tiny_config.train), mesh, 0)
    kernels = [name for name in state.parameters if name.endswith("kernel")]
    assert kernels
    for name in kernels:
        assert "fsdp" in state.parameters[name].sharding.spec, name
    for name, array in state.parameters.items():
        assert state.ema[name].sharding == array.sharding
    moments = [m for m in jax.tree.leaves(state.optimizer) if m.ndim]
    shapes = sorted((m.shape, str(m.sharding.spec)) for m in moments)
    assert shapes == sorted((p.shape, str(p.sharding.spec)) for p in [*state.parameters.values()] * 2)


def test_heads_and_feed_forwards_are_cut_over_tensor(tiny_config):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    denoiser, _ = build_networks(tiny_config.model)
    parameters = create_state(denoiser, make_optimizer(tiny_config.train), mesh, 0).parameters
    for name, spec in (
        ("image_qkv.query.kernel", (None, "fsdp", "tensor")),
        ("image_out.kernel", (None, "tensor", "fsdp")),
        ("image_mlp.up.kernel", (None, "fsdp", "tensor")),
        ("image_mlp.down.kernel", (None, "tensor", "fsdp")),
        ("identity.key.kernel", (None, "fsdp", "tensor")),
    ):
        found = [p for n, p in parameters.items() if n.startswith("mmdit.segments.0") and n.endswith(name)]
        assert [p.sharding.spec for p in found] == [PartitionSpec(*spec)], name
        assert found[0].addressable_shards[0].data.size * 4 == found[0].size


def test_the_batch_is_cut_over_all_devices_that_share_no_image():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert sharding.batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert sharding.batch_parts(mesh) == 4


def job_mesh(processes, each, tensor):
    """What `batch_shard` looks at, of a job of several processes."""
    owners = np.repeat(np.arange(processes), each).reshape(-1, 1, tensor)
    devices = np.vectorize(lambda owner: SimpleNamespace(process_index=owner), otypes=[object])(owners)
    return SimpleNamespace(devices=devices, size=devices.size, shape={"data": len(owners), "fsdp": 1, "tensor": tensor})


@pytest.mark.parametrize(
    ("processes", "each", "tensor", "num_shards"),
    [
        (1, 8, 2, [(0, 1)]),
        (2, 4, 1, [(0, 2), (1, 2)]),
        (2, 4, 4, [(0, 2), (1, 2)]),
        (4, 2, 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes share their images
        (2, 4, 8, [(0, 1), (0, 1)]),
    ],
)
def test_every_process_has_the_share_of_a_batch_that_its_devices_hold(monkeypatch, processes, each, tensor, num_shards):
    for process, shard_index in enumerate(num_shards):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert sharding.batch_shard(job_mesh(processes, each, tensor)) == shard_index


@pytest.mark.parametrize("process", [0, 1, 2])
def test_a_mesh_that_gives_processes_unequal_shards_is_refused_by_all(monkeypatch, process):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    with pytest.raises(ValueError, match=r"mesh\.tensor=6: there are 3 processes of 4 devices"):
        sharding.batch_shard(job_mesh(3, 4, 6))


def test_a_batch_that_does_not_divide_is_refused_by_name():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    sharding.check_batch(16, 4, mesh)
    with pytest.raises(ConfigError, match=r"train\.batch_size=12: .* = 2 \* 4"):
        sharding.check_batch(12, 2, mesh)


@pytest.mark.parametrize(
    "config", [AutoencoderConfig.avatar_tiny(), AutoencoderConfig.sd3()], ids=["avatar_tiny", "sd3"]
)
def test_autoencoders_can_be_cut_over_eight_devices(config):
    network = Functional(lambda rngs: AutoencoderKL(config, rngs=rngs))
    places = sharding.parameter_shardings(network.logical_axes, network.shapes, make_mesh(MeshConfig(fsdp=8)))
    assert places["decoder.conv_in.kernel"].spec[-1] == "fsdp"
    assert places["decoder.conv_out.kernel"].spec[-1] is None
