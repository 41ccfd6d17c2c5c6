"""Products of factors rounded to 8 bits: how near they are to full ones, where they are used, what sets say."""

import builtins
import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genaffect_jax import sample
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.models.inference import PLAIN, Inference
from genaffect_jax.models.layers import Linear, joined_product
from genaffect_jax.models.quantised import product
from genaffect_jax.pipeline import Pipeline

# Relative error of a product of normal numbers. int8: the largest of 256 is about 3, so a factor is off by
# 3 / 127.5 / sqrt(12) and two of them by 1 %; float8 has 3 bits behind the point, which gives 3.7 %.
TOLERANCE = {"int8": 0.015, "float8": 0.05}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def layer(products: str, dtype=jnp.float32) -> Linear:
    made = Linear(256, 64, axes=(None, None), rngs=nnx.Rngs(0), dtype=dtype, products=products)
    made.bias.set_value(jnp.asarray(normal(5, 64)))
    return made


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("products", ["int8", "float8"])
def test_rounded_products_are_near_full_ones_in_every_row_and_column(products, dtype):
    x, kernel = normal(1, 3, 7, 256), normal(2, 256, 64)
    x[1, 2] *= 1000
    x[2, 3] = 0
    kernel[:, 5] *= 1000
    found = product(jnp.asarray(x, dtype), jnp.asarray(kernel), products, dtype, dtype)
    assert found.dtype == dtype
    rows, columns = np.asarray(jnp.asarray(x, dtype), np.float64).reshape(21, 256), kernel.astype(np.float64)
    wrong = np.asarray(found, np.float64).reshape(21, 64) - rows @ columns
    assert (wrong[17] == 0).all()
    # What a product of such a row and such a column is of the order of.
    size = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(columns, axis=0) / np.sqrt(256)
    wrong = np.delete(wrong / np.maximum(size, 1e-9), 17, axis=0)
    for axis in (0, 1):
        error = np.sqrt((wrong**2).mean(axis))
        assert error.max() < 2 * TOLERANCE[products]  # few numbers scatter
        assert 0.1 * TOLERANCE[products] < error.mean() < TOLERANCE[products]


@pytest.mark.parametrize(("products", "factor"), [("int8", "i8"), ("float8", "f8_e4m3fn")])
def test_what_is_multiplied_has_8_bits(products, factor):
    made = str(
        jax.make_jaxpr(lambda x: product(x, jnp.ones((8, 4)), products, jnp.float32, jnp.float32))(normal(0, 3, 8))
    )
    multiplied = [line for line in made.splitlines() if f":{factor}[3,8]" in line]
    assert multiplied
    assert "dot_general" in made


def test_a_token_does_not_depend_on_those_beside_it():
    x = normal(1, 6, 256)
    other = x.copy()
    other[0] *= 1000
    of = layer("int8")
    np.testing.assert_array_equal(of(jnp.asarray(x))[1:], of(jnp.asarray(other))[1:])


@pytest.mark.parametrize("products", ["int8", "float8"])
def test_a_joined_product_is_the_products_of_its_layers(products):
    layers = [Linear(256, 32, axes=(None, None), rngs=nnx.Rngs(i), products=products) for i in range(3)]
    x = jnp.asarray(normal(3, 5, 256))
    for joined, single in zip(jnp.split(joined_product(x, layers), 3, axis=-1), layers, strict=True):
        np.testing.assert_allclose(joined, single.product(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_full_products_multiply_what_they_are_given(dtype):
    of, x = layer("full", dtype), jnp.asarray(normal(4, 9, 256))
    expected = x.astype(dtype) @ of.kernel[...].astype(dtype) + of.bias[...].astype(dtype)
    np.testing.assert_array_equal(of(x), expected)
    np.testing.assert_array_equal(of.biased(joined_product(x, [of])), expected)


def test_only_the_large_products_of_the_blocks_are_rounded(tiny_model):
    def of(inference: Inference) -> set[str]:
        config = dataclasses.replace(
            tiny_model, mmdit=dataclasses.replace(tiny_model.mmdit, dual_attention_layers=(0,))
        )
        model = nnx.eval_shape(lambda: GenAffect(config, rngs=nnx.Rngs(0), inference=inference))
        return {
            ".".join(p for p in map(str, path) if not p.isdigit())
            for path, module in nnx.iter_graph(model)
            if isinstance(module, Linear) and module.products == "int8"
        }

    streams = {f"{stream}_{part}" for stream in ("image", "text")
               for part in ("qkv.query", "qkv.key", "qkv.value", "out", "mlp.up", "mlp.down")}  # fmt: skip
    own = {f"image_attention.{part}" for part in ("qkv.query", "qkv.key", "qkv.value", "out")}
    assert of(Inference(products="int8")) == {f"mmdit.segments.layers.{name}" for name in streams | own}
    assert of(PLAIN) == set()


def test_a_set_is_drawn_and_says_by_which_products(trained_workdir, tmp_path, capsys):
    devices = jax.devices()[:1]
    full = Pipeline.load(trained_workdir, devices=devices)
    rounded = Pipeline.load(trained_workdir, devices=devices, products="int8")
    assert rounded.name == f"{full.name}, int8 products"
    drawn, exact = (p("seed:2", "joy, anger", steps=2, seed=3) for p in (rounded, full))
    away = np.abs(drawn.images.astype(int) - exact.images.astype(int))
    assert 0 < away.mean() < 4
    assert exact.settings["products"] == "full"
    with pytest.raises(ConfigError, match=r"--add_to: the set was drawn by .* int8 products, this is"):
        full.add(drawn, "fear")
    with pytest.raises(ConfigError, match=r"--add_to: the set was drawn by .*, this is .* int8 products"):
        rounded.add(exact, "fear")

    common = ["--model", str(trained_workdir), "--products", "int8"]
    out = str(tmp_path / "set")
    drawing = [*common, "--identity", "seed:2", "--expressions", "joy", "--steps", "1", "--out", out]
    assert sample.main(drawing) == 0
    saved = json.loads((tmp_path / "set" / "set.json").read_text())
    assert saved["products"] == "int8"
    assert saved["model"] == rounded.name
    assert sample.main([*common[:2], "--add_to", out, "--expressions", "anger"]) == 2
    assert "int8 products" in capsys.readouterr().err


def test_products_that_cannot_be_computed_are_one_error(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--products int4: unknown, must be one of full, int8, float8"):
        Pipeline.load(tmp_path, products="int4")
    with pytest.raises(ConfigError, match="--products int4"):
        Inference(products="int4")

    real = builtins.__import__

    def without_qwix(name, *rest):
        if name.split(".")[0] == "qwix":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_qwix)
    monkeypatch.setitem(sys.modules, "qwix", None)
    missing = r"--products float8: needs qwix, .*pip install -c constraints.txt -e '.\[quantised\]'"
    with pytest.raises(ConfigError, match=missing):
        Pipeline.load(tmp_path, products="float8")
    with pytest.raises(ConfigError, match=missing):
        Inference(products="float8")
    with pytest.raises(ConfigError, match="no working folder"):
        Pipeline.load(tmp_path)
