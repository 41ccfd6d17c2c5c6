"""The denoiser: branches that begin as nothing, scanned and unrolled runs, sharding metadata, sizes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genaffect_jax.config import AutoencoderConfig, ConditioningConfig, MMDiTConfig, ModelConfig
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.models.mmdit.embeddings import patchify, unpatchify
from genaffect_jax.models.mmdit.model import MMDiT

SMALL = MMDiTConfig(
    sample_size=8,
    num_layers=3,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=12,
    pooled_projection_dim=0,
    in_channels=4,
    pos_embed_max_size=5,
    register_tokens=3,
)
G, E, R, WIDTH = 2, 3, 2, 6
# Compiling is most of the time here; what is compiled runs once.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def model_config(mmdit: MMDiTConfig = SMALL) -> ModelConfig:
    return ModelConfig(
        mmdit=mmdit,
        autoencoder=AutoencoderConfig(latent_channels=mmdit.in_channels),
        conditioning=ConditioningConfig(expression_width=WIDTH, expression_tokens=2, identity_layers=1),
    )


def perturbed(model: Any, scale: float = 0.1) -> Any:
    """The model with noise on every parameter, so that nothing is at its initial zero."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    leaves = [x + scale * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest)


@functools.cache
def small_model() -> GenAffect:
    """One model of random parameters for the tests that leave it as it is."""
    return perturbed(GenAffect(model_config(), rngs=nnx.Rngs(0)))


def inputs(seed: int = 0) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "latents": jax.random.normal(keys[0], (G, E, 8, 8, 4)),
        "timestep": jnp.linspace(0.1, 0.9, G * E).reshape(G, E),
        "reference": jax.random.normal(keys[1], (G, R, 8, 8, 4)),
        "reference_mask": jnp.ones((G, R), bool),
        "expression": jax.random.uniform(keys[2], (G, E, WIDTH)),
    }


@functools.cache
def compiled(graph: nnx.GraphDef) -> Callable[..., jax.Array]:
    def run(state: Any, v: dict[str, jax.Array], scales: tuple[jax.Array, jax.Array]) -> jax.Array:
        model = nnx.merge(graph, state)
        conditions = model.encode_conditions(v["reference"], v["reference_mask"], v["expression"])
        identity, expression = scales
        return model(
            v["latents"], v["timestep"], conditions, identity_scale=identity, expression_scale=expression
        ).prediction

    return jax.jit(run, compiler_options=FAST)


def forward(model: GenAffect, values: dict[str, jax.Array], scales: tuple[Any, Any] = (1.0, 1.0)) -> jax.Array:
    graph, state = nnx.split(model)
    per_layer = [jnp.broadcast_to(jnp.asarray(scale), (SMALL.num_layers,)) for scale in scales]
    return compiled(graph)(state, values, per_layer)


def backbone_alone(model: GenAffect, values: dict[str, jax.Array]) -> jax.Array:
    """The same weights in a denoiser built without branches."""
    plain = nnx.eval_shape(lambda: MMDiT(model.mmdit.config, branches=None, rngs=nnx.Rngs(1)))
    source = dict(nnx.to_flat_state(nnx.state(model.mmdit)))
    nnx.update(plain, nnx.from_flat_state([(p, source[p]) for p, _ in nnx.to_flat_state(nnx.state(plain))]))
    graph, state = nnx.split(plain)

    def run(state: Any, v: dict[str, jax.Array]) -> jax.Array:
        model = nnx.merge(graph, state)
        return model(v["latents"], v["timestep"], model.project_conditions()).prediction

    return jax.jit(run, compiler_options=FAST)(state, values)


def test_new_branches_add_exactly_nothing() -> None:
    fresh, values = GenAffect(model_config(), rngs=nnx.Rngs(0)), inputs()
    values_at_start = [
        getattr(segment.layers, name).value.kernel
        for segment in fresh.mmdit.segments
        for name in ("identity", "expression")
    ]
    assert not any(kernel[...].any() for kernel in values_at_start)
    # Shake everything else, or the output would be zero whatever the branches did (adaLN-Zero).
    model = perturbed(fresh)
    for segment in model.mmdit.segments:
        for branch in (segment.layers.identity, segment.layers.expression):
            branch.value.kernel[...] = jnp.zeros_like(branch.value.kernel[...])
    found = forward(model, values)
    assert jnp.abs(found).max() > 0.1
    np.testing.assert_array_equal(found, forward(model, values, (0.0, 0.0)))
    np.testing.assert_array_equal(found, backbone_alone(model, values))


def test_scale_zero_switches_a_branch_off_and_each_scale_its_own() -> None:
    model, values = small_model(), inputs()
    others = {
        **values,
        "reference": inputs(1)["reference"],
        "expression": inputs(1)["expression"],
    }
    np.testing.assert_array_equal(forward(model, values, (0.0, 0.0)), backbone_alone(model, values))
    no_identity = forward(model, values, (0.0, 1.0))
    np.testing.assert_array_equal(no_identity, forward(model, {**values, "reference": others["reference"]}, (0.0, 1.0)))
    assert jnp.abs(no_identity - forward(model, others, (0.0, 1.0))).max() > 1e-3
    no_expression = forward(model, values, (1.0, 0.0))
    changed = {**values, "expression": others["expression"]}
    np.testing.assert_array_equal(no_expression, forward(model, changed, (1.0, 0.0)))
    assert jnp.abs(no_expression - forward(model, others, (1.0, 0.0))).max() > 1e-3


def test_one_number_scales_every_layer_and_changing_it_does_not_retrace() -> None:
    model, values = small_model(), inputs()
    graph, state = nnx.split(model)
    traces = []

    @jax.jit
    def run(state: Any, identity_scale: jax.Array, expression_scale: jax.Array) -> jax.Array:
        traces.append(1)
        model = nnx.merge(graph, state)
        conditions = model.encode_conditions(values["reference"], values["reference_mask"], values["expression"])
        return model(
            values["latents"],
            values["timestep"],
            conditions,
            identity_scale=identity_scale,
            expression_scale=expression_scale,
        ).prediction

    for scale in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(
            run(state, scale, 2 * scale), forward(model, values, (scale, 2 * scale)), rtol=1e-4, atol=1e-5
        )
    assert len(traces) == 1
    first_only = forward(model, values, (jnp.array([1.0, 0.0, 0.0]), 0.0))
    assert jnp.abs(first_only - forward(model, values, (0.0, 0.0))).max() > 1e-3


def test_scanned_unrolled_and_rematerialised_runs_agree_in_values_and_gradients() -> None:
    config = dataclasses.replace(SMALL, dual_attention_layers=(0, 1), num_layers=3)
    values, results = inputs(), []
    _, params, rest = nnx.split(perturbed(MMDiT(config, branches=None, rngs=nnx.Rngs(0))), nnx.Param, ...)
    for scan, kind in ((True, "none"), (False, "none"), (True, "full"), (True, "dots"), (True, "named")):
        choice = dataclasses.replace(config, scan_layers=scan, remat=kind)
        graph = nnx.split(nnx.eval_shape(lambda c=choice: MMDiT(c, branches=None, rngs=nnx.Rngs(0))))[0]

        def loss(params: Any, graph: Any = graph) -> jax.Array:
            model = nnx.merge(graph, params, rest)
            output = model(values["latents"], values["timestep"], model.project_conditions())
            return jnp.square(output.prediction).mean()

        results.append(jax.jit(jax.value_and_grad(loss), compiler_options=FAST)(params))
    for value, gradients in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-5)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(results[0][1]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()) + 1e-7)


def test_what_is_rematerialised_is_what_the_configuration_says() -> None:
    products = {}
    for kind in ("none", "named", "dots", "full"):
        config = dataclasses.replace(SMALL, num_layers=3, scan_layers=False, remat=kind)
        abstract = nnx.eval_shape(lambda c=config: MMDiT(c, branches=None, rngs=nnx.Rngs(0)))
        graph, params, rest = nnx.split(abstract, nnx.Param, ...)
        values = inputs()

        def loss(params: Any, rest: Any, graph: Any = graph, values: Any = values) -> jax.Array:
            model = nnx.merge(graph, params, rest)
            output = model(values["latents"], values["timestep"], model.project_conditions())
            return jnp.square(output.prediction).mean()

        products[kind] = jax.jit(jax.grad(loss)).lower(params, rest).as_text().count("stablehlo.dot_general")
    # `dots` computes attention's two products of each block again, `full` those with weights too. `named` keeps what
    # attention kernels give, but XLA's attention on a CPU is none.
    assert products["none"] < products["named"] <= products["dots"] < products["full"]


def test_the_order_of_references_and_what_padding_holds_do_not_matter() -> None:
    model, values = small_model(), inputs()
    swapped = {**values, "reference": values["reference"][:, ::-1]}
    np.testing.assert_allclose(forward(model, swapped), forward(model, values), rtol=1e-4, atol=1e-5)
    one = {**values, "reference_mask": jnp.array([[True, False]] * G)}
    other = {**one, "reference": values["reference"].at[:, 1].set(100.0 * inputs(1)["reference"][:, 1])}
    np.testing.assert_array_equal(forward(model, one), forward(model, other))
    assert jnp.abs(forward(model, one) - forward(model, values)).max() > 1e-3


def test_images_and_groups_do_not_influence_each_other() -> None:
    model, values = small_model(), inputs()
    other = inputs(1)
    changed = {name: values[name].at[1].set(other[name][1]) for name in values}
    np.testing.assert_array_equal(forward(model, values)[0], forward(model, changed)[0])
    changed = {**values, "latents": values["latents"].at[0, 1].set(other["latents"][0, 1])}
    before, after = forward(model, values), forward(model, changed)
    np.testing.assert_array_equal(before[0, [0, 2]], after[0, [0, 2]])
    assert jnp.abs(before[0, 1] - after[0, 1]).max() > 1e-3


def test_gradients_reach_every_parameter() -> None:
    model, values = small_model(), inputs()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    drop_identity = jnp.array([True, False])
    drop_expression = jnp.zeros((G, E), bool).at[1, 0].set(True)

    def loss(params: Any) -> jax.Array:
        model = nnx.merge(graph, params, rest)
        conditions = model.encode_conditions(
            values["reference"], values["reference_mask"], values["expression"], drop_identity, drop_expression
        )
        return jnp.square(model(values["latents"], values["timestep"], conditions).prediction).sum()

    gradients = jax.jit(jax.grad(loss), compiler_options=FAST)(params)
    # The last block's text queries are computed by the reference too, and have no effect there either.
    unused = ("text_qkv", "query"), ("text_qkv", "query_norm")
    for path, gradient in nnx.to_flat_state(gradients):
        reached = jnp.abs(gradient[...]).reshape(gradient.shape[0], -1).max(axis=-1)
        if path[:3] == ("mmdit", "segments", 1) and path[4:6] in unused:
            continue
        if "segments" in path or "stack" in path:
            assert (reached > 0).all(), path
        else:
            assert reached.max() > 0, path


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        MMDiTConfig.avatar_tiny(),
        dataclasses.replace(SMALL, dual_attention_layers=(0,), register_tokens=0, pooled_projection_dim=8),
    ],
)
def test_every_variable_names_its_axes(config: MMDiTConfig, scan: bool) -> None:
    config = dataclasses.replace(config, scan_layers=scan)
    model = nnx.eval_shape(lambda: GenAffect(model_config(config), rngs=nnx.Rngs(0)))
    known = {"embed", "heads", "mlp", "conditioning", "layers", None}
    count = 0
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable):
            axes = variable.get_metadata()["logical_axes"]
            named = [axis for axis in axes if axis is not None]
            assert len(axes) == len(variable.shape), path
            assert len(named) == len(set(named)), path
            assert set(axes) <= known, path
            count += 1
    assert count > 50


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(MMDiTConfig.sd3_medium(), 2.03e9), (MMDiTConfig.sd35_medium(), 2.24e9), (MMDiTConfig.sd35_large(), 8.06e9)],
)
def test_named_sizes_have_the_published_parameter_counts(config: MMDiTConfig, parameters: float) -> None:
    model = nnx.eval_shape(lambda: MMDiT(config, branches=None, rngs=nnx.Rngs(0)))
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert abs(count / parameters - 1.0) < 0.02, count


def test_positions_are_the_centre_of_the_table_and_too_large_grids_are_refused() -> None:
    model = MMDiT(SMALL, branches=None, rngs=nnx.Rngs(0))
    table = model.position_table[...]
    np.testing.assert_array_equal(model.positions(3, 2), table[1:4, 1:3].reshape(6, -1))
    with pytest.raises(ValueError, match="6x2 tokens: the position table holds 5x5"):
        model.positions(6, 2)


def test_unpatchify_inverts_patchify_row_by_row() -> None:
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    tokens = patchify(x, 2)
    np.testing.assert_array_equal(tokens[1, 4], x[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(unpatchify(tokens, 2, 2, 3), x)


def test_missing_and_needless_conditions_are_named() -> None:
    plain = MMDiT(SMALL, branches=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="text is given, but the model takes none"):
        plain.project_conditions(text=jnp.zeros((1, 1, 2, 12)))
    given = MMDiT(
        dataclasses.replace(SMALL, register_tokens=0, pooled_projection_dim=8), branches=None, rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match="pooled is missing"):
        given.project_conditions(text=jnp.zeros((1, 1, 2, 12)))


def test_bfloat16_stays_near_float32_and_keeps_float32_parameters() -> None:
    values, results = inputs(), []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = perturbed(GenAffect(model_config(), rngs=nnx.Rngs(0), dtype=dtype))
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
        results.append(forward(model, values))
    assert results[1].dtype == jnp.float32
    error = jnp.abs(results[0] - results[1]).max() / jnp.abs(results[0]).max()
    assert 1e-6 < error < 0.05
