"""Programs compiled ahead of time are those of training and drawing, and what does not fit is said in one line."""

import dataclasses
import importlib.util
import json
import runpy
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genaffect_jax.checkpoints.components import install_encoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.compile_check import __main__ as compile_check
from genaffect_jax.compile_check import topology
from genaffect_jax.compile_check.collectives import Collective, collectives, totals
from genaffect_jax.compile_check.report import Memory, compile_and_report, judge, refusal
from genaffect_jax.compile_check.sampler import lower_sampler
from genaffect_jax.compile_check.topology import topology_devices
from genaffect_jax.compile_check.train_step import lower_train_step
from genaffect_jax.config import DenoiserRun, MeshConfig, ModelConfig
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.open import open_source
from genaffect_jax.errors import TopologyError
from genaffect_jax.inference.program import SamplerSpec
from genaffect_jax.io.weight_file import load_weights, resolve_weights
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.chips import CHIPS, Chip
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.denoiser.batch import batch_shapes
from genaffect_jax.training.denoiser.features import cache_features

CONFIGS = Path(__file__).parents[2] / "configs"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler (extra tpu)"
)


def preset_of(name: str) -> DenoiserRun:
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["config"]()


@pytest.fixture
def small_chips(monkeypatch):
    """Four of this machine's simulated devices, in place of a topology of chips with so much memory."""

    def give(memory: int) -> None:
        chip = Chip("toy", memory, 1e12, 1e11, 1e10)
        monkeypatch.setattr(compile_check, "topology_devices", lambda _: (jax.devices()[:4], chip))

    return give


@pytest.mark.parametrize(
    ("changes", "encoder"),
    [({"cache_latents": True}, ""), ({"cache_latents": False}, ""), ({"cache_latents": True}, "identity_avatar")],
)
def test_a_batch_has_the_shapes_that_the_loader_gives(changes: dict, encoder: str, tmp_path: Path) -> None:
    config = preset_of("avatar_tiny")
    model = config.model
    if encoder:
        conditioning = dataclasses.replace(model.conditioning, identity_embedding=256)
        model = dataclasses.replace(model, identity_encoder=f"package:{encoder}", conditioning=conditioning)
    data = dataclasses.replace(config.data, identities=4, expressions_per_identity=4, workers=0, **changes)
    config = dataclasses.replace(config, data=data, model=model)
    _, autoencoder = build_networks(config.model)
    weights = load_weights(autoencoder, resolve_weights(config.model.autoencoder_weights), config.model.autoencoder)
    run_dir = RunDir(tmp_path)
    shutil.copyfile(resolve_weights(config.model.autoencoder_weights), run_dir.autoencoder)
    source = open_source(config.data, run_dir)
    faces = install_encoders(run_dir, config.model)
    stored = cache_features(config, source, run_dir, faces, autoencoder, weights)
    # With prompts, as a model with a text stream has them: their rows do not depend on what they say.
    text = dataclasses.replace(config.model.mmdit, register_tokens=0, pooled_projection_dim=8)
    for network, rows in ((config.model.mmdit, None), (text, np.zeros(len(stored.examples), np.int32))):
        run = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, mmdit=network),
            text=dataclasses.replace(config.text, embeddings=Path("none") if rows is not None else None),
        )
        batches = make_loader(
            stored,
            sorted({p.identity for p in stored.examples}),
            batch_size=config.train.batch_size,
            expressions_per_set=config.data.expressions_per_set,
            seed=0,
            workers=0,
            prompts=rows,
        )
        found = {name: (array.shape, array.dtype) for name, array in next(batches).items()}
        batches.close()
        shapes = batch_shapes(run)
        assert found == {name: (shape.shape, shape.dtype) for name, shape in shapes.items()}


def test_collectives_of_a_compiled_program_are_counted_with_their_loops_and_bytes() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(8), ("x",))
    cut = PartitionSpec("x")

    @partial(jax.shard_map, mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False)
    def program(x):  # [64] of [512] on each device

        def body(carry, _):
            gathered = jax.lax.all_gather(carry, "x", tiled=True)
            return jax.lax.psum_scatter(jnp.sin(gathered), "x", tiled=True), None

        x, _ = jax.lax.scan(body, x, None, length=5)
        x = jax.lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])
        x = jax.lax.all_to_all(x.reshape(8, 8), "x", 0, 0).reshape(-1)
        x = jax.lax.while_loop(lambda x: x[0] < 1, lambda x: x + jax.lax.psum(jnp.cos(x), "x"), x)
        return x

    x = jax.ShapeDtypeStruct((512,), jnp.float32, sharding=NamedSharding(mesh, cut))
    found = totals(collectives(jax.jit(program).lower(x).compile().as_text()))
    assert list(found) == ["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute"]
    whole = 512 * 4
    for spec in ("all-gather", "reduce-scatter"):
        assert (found[spec].count, found[spec].size, found[spec].loop) == (5, 5 * whole, False)
        assert found[spec].sent == 5 * whole * 7 / 8
    assert (found["all-to-all"].count, found["all-to-all"].size, found["all-to-all"].sent) == (1, 256, 256 * 7 / 8)
    assert (found["collective-permute"].count, found["collective-permute"].sent) == (1, 256)
    # The loop ends when the data say so: one turn, and it is said.
    assert (found["all-reduce"].count, found["all-reduce"].size, found["all-reduce"].loop) == (1, 256, True)
    assert found["all-reduce"].sent == 2 * 256 * 7 / 8


# What libtpu writes, shortened: a loop of 13 turns without XLA's note, one asynchronous gather in three fusions, and a
# reduce-scatter as an all-reduce with a slice.
TPU_TEXT = """HloModule jit_step

%fused.1 (p: bf16[96,128]) -> bf16[1536,128] {
  %all-gather.1 = bf16[1536,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="2"}
}

%async_collective_fusion.1 (p: bf16[96,128]) -> bf16[1536,128] {
  %all-gather.2 = bf16[1536,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="2"}
}

%all-reduce-scatter.1 (input.1: f32[1536,128]) -> f32[96,128] {
  %input.1 = f32[1536,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[1536,128]{1,0:T(8,128)} all-reduce(%input.1), replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}, to_apply=%add
  ROOT %slice.1 = f32[96,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.9, %a, %b)
}

%condition.1 (p: (u32[], bf16[96,128])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(13)
  ROOT %compare.1 = pred[]{:T(512)} compare(%counter, %constant.1), direction=LT
}

%body.1 (p: (u32[], bf16[96,128])) -> (u32[], bf16[96,128]) {
  %fusion.1 = bf16[1536,128]{1,0} fusion(%p), kind=kOutput, calls=%fused.1
  %fusion.2 = bf16[1536,128]{1,0} fusion(%p), kind=kOutput, calls=%async_collective_fusion.1
  %fusion.3 = f32[96,128]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}

ENTRY %main (p: bf16[96,128]) -> bf16[96,128] {
  %while.1 = (u32[]{:T(128)}, bf16[96,128]{1,0:T(8,128)}) while(%tuple), condition=%condition.1, body=%body.1
}
"""  # noqa: E501


def test_what_the_tpu_compiler_writes_is_read() -> None:
    assert collectives(TPU_TEXT) == [
        Collective("all-gather", 1536 * 128 * 2, frozenset({"bf16"}), 16, 13),
        Collective("reduce-scatter", 1536 * 128 * 4, frozenset({"f32"}), 16, 13),
    ]


def test_a_program_fits_if_it_leaves_the_reserve_free() -> None:
    chip = Chip("toy", 1000, 1.0, 1.0, 1.0)
    # Arguments that outputs take the place of count once.
    assert judge(Memory(500, 450, 400, 350, 50), chip, 0.05)[0]
    fits, words = judge(Memory(500, 450, 400, 351, 50), chip, 0.05)
    assert not fits
    assert "does not fit" in words
    assert judge(Memory(500, 450, 400, 351, 50), chip, 0.0)[0]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (26.86G) "
            "exceeds available HBM (15.75G).",
            "26.86 GiB do not go into 15.75 GiB",
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of 256.00M hbm. Exceeded",
            "0.50 GiB do not go into 0.25 GiB",
        ),
        ("RESOURCE_EXHAUSTED: something else\nmore", "RESOURCE_EXHAUSTED: something else"),
    ],
)
def test_a_program_that_the_compiler_refuses_does_not_fit(message: str, words: str) -> None:
    class Refused:
        def as_text(self) -> str:
            return ""

        def compile(self):
            raise jax.errors.JaxRuntimeError(message)

    report = compile_and_report("train", Refused(), CHIPS["TPU v5 lite"], 1e12, 0.05)
    assert not report.fits
    assert report.verdict == f"train: {refusal(message)}"
    assert words in report.verdict
    assert report.memory is None


def test_other_failures_of_the_compiler_are_not_taken_for_a_lack_of_memory() -> None:
    class Broken:
        def as_text(self) -> str:
            return ""

        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: a defect")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a defect"):
        compile_and_report("train", Broken(), CHIPS["TPU v5 lite"], 1e12, 0.05)


def test_the_command_tells_what_fits_from_what_does_not(preset, small_chips, tmp_path, capsys) -> None:
    argv = [
        "--config",
        str(preset()),
        "--topology",
        "toy:2x2",
        "--mesh.fsdp",
        "2",
        "--programs",
        "train",
        "--json",
        str(tmp_path / "report.json"),
    ]
    small_chips(1 << 30)
    assert compile_check.main(argv) == 0
    assert "train: fits" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    program = report["programs"][0]
    assert report["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert program["fits"]
    # What is cut over fsdp is gathered to be used, and gradients of both data parallel parts are put together.
    assert program["collectives"]["all-gather"]["sent"] > 0
    assert program["collectives"]["all-reduce"]["sent"] > 0
    assert program["estimate"]["compute"] == pytest.approx(program["flops"] / 0.5e12)
    small_chips(1 << 20)
    assert compile_check.main(argv) == 1
    assert "train: does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mesh.fsdp", "3"], "mesh.fsdp=3"),
        (["--train.batch_size", "6"], "--train.batch_size 6: must be a multiple of"),
        (["--reserve", "2"], "--reserve 2.0: must be within 0 and 0.99"),
        (["--images", "0"], "--images 0: must be at least 1"),
        (["--json", "nowhere/report.json"], "--json nowhere/report.json: there is no folder nowhere"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(options, words, preset, small_chips, capsys) -> None:
    small_chips(1 << 30)
    try:
        status = compile_check.main(["--config", str(preset()), "--topology", "toy:2x2", *options])
    except SystemExit as ended:  # what needs no devices is refused while the options are read
        status = ended.code
    assert status == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_without_the_tpu_compiler_the_command_says_how_to_get_it(preset, monkeypatch, capsys) -> None:
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    assert compile_check.main(["--config", str(preset()), "--topology", "v5e:2x2"]) == 2
    assert "pip install -c constraints.txt -e '.[tpu]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sd35_medium", "sd35_large"])
def test_files_that_a_preset_asks_for_need_not_be_given(name: str) -> None:
    run = compile_check.without_files(preset_of(name))
    assert isinstance(run.data.root, Path)
    assert isinstance(run.model.transformer_weights, str)
    assert batch_shapes(run)["target"].shape == (8, 3, 64, 64, 16)


def test_the_sampler_of_a_text_model_samples_its_own_images_on_every_chip(tiny_config: DenoiserRun) -> None:
    network = dataclasses.replace(tiny_config.model.mmdit, register_tokens=0, pooled_projection_dim=8)
    config = dataclasses.replace(
        tiny_config,
        model=dataclasses.replace(tiny_config.model, mmdit=network),
        text=dataclasses.replace(tiny_config.text, embeddings=Path("not-read")),
    )
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:4])
    images, kv_cache, _ = lower_sampler(
        config, mesh, SamplerSpec(mode="joint", shared=4, anchors=1), 3, steps=2
    ).out_info
    assert (images.shape, images.dtype, kv_cache) == ((1, 4 * 3, 32, 32, 3), jnp.uint8, None)


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:3x3", "v9:2x2", "rubbish", "v4:2x2x1"])
def test_a_topology_that_is_not_known_is_named_beside_some_that_are(name: str) -> None:
    with pytest.raises(TopologyError, match=rf"topology={name}: .*v5e:4x4"):
        topology_devices(name)


@pytest.fixture
def odd_model(tiny_model: ModelConfig) -> ModelConfig:
    """Odd text lengths, a block with a second attention, heads of 64 as in SD3.5: whatever a kernel could refuse."""
    network = dataclasses.replace(
        tiny_model.mmdit,
        attention_head_dim=64,
        joint_attention_dim=128,
        register_tokens=5,
        dual_attention_layers=(0,),
        remat="full",
    )
    return dataclasses.replace(tiny_model, mmdit=network)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"), [("v5e:2x2", MeshConfig(fsdp=2, tensor=2)), ("v5p:2x2x2", MeshConfig(data=2, fsdp=4))]
)
def test_the_training_step_compiles_for_every_chip_of_a_topology(
    tiny_config: DenoiserRun, odd_model: ModelConfig, name: str, mesh: MeshConfig
) -> None:
    devices, chip = topology_devices(name)
    lowered = lower_train_step(dataclasses.replace(tiny_config, model=odd_model), make_mesh(mesh, devices))
    report = compile_and_report("train", lowered, chip, 1e12, 0.05)
    assert report.fits
    assert report.kernels >= 3  # forward, and two kernels of its gradient
    assert report.collectives["all-gather"].sent > 0


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:4x4"])
def test_the_sampler_with_sharing_compiles_for_every_chip_of_a_topology(
    tiny_config: DenoiserRun, odd_model: ModelConfig, name: str
) -> None:
    devices, _ = topology_devices(name)
    spec = SamplerSpec(mode="decoupled", shared=8, anchors=2, first_decoded=2)
    config = dataclasses.replace(tiny_config, model=odd_model)
    lowered = lower_sampler(config, make_mesh(MeshConfig(), devices), spec, 3, steps=4)
    # Three log-sum-exp attentions of a consistent layer (anchors' own, others' own, pool) are kernels at the least.
    assert lowered.as_text().count("tpu_custom_call") >= 3
    memory = lowered.compile().memory_analysis()
    # One image of 32 px on each chip: the cut over the chips is in the program.
    assert memory.output_size_in_bytes < 2 * 4096 * 2
