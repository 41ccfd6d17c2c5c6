"""Weights in 8 bits: channels keep their own scale, whatever the others hold."""

from __future__ import annotations

import numpy as np
import pytest

from genaffect_jax.io.eight_bit import LARGEST, dequantise, is_quantised, quantise


def test_a_channel_of_small_weights_keeps_its_digits_beside_one_of_large_weights() -> None:
    weights = np.random.default_rng(0).standard_normal((3, 3, 8, 2)).astype(np.float32) * np.float32([1e-6, 1e6])
    integers, scale = quantise(weights)
    assert integers.dtype == np.int8
    assert scale.shape == (2,)
    error = np.abs(dequantise(integers, scale) - weights).max(axis=(0, 1, 2))
    assert (error <= np.abs(weights).max(axis=(0, 1, 2)) / (2 * LARGEST) * 1.0001).all()


def test_the_largest_weight_of_a_channel_is_kept_with_its_sign() -> None:
    weights = np.float32([[-3.0, 0.5], [1.0, 0.25]])
    integers, scale = quantise(weights)
    np.testing.assert_array_equal(np.abs(integers).max(axis=0), [LARGEST, LARGEST])
    np.testing.assert_allclose(dequantise(integers, scale)[0], weights[0], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-44, 3e38])
def test_zeros_and_the_ends_of_float32_stay_finite_and_close(value: float) -> None:
    integers, scale = quantise(np.full((4, 3), value, np.float32))
    found = dequantise(integers, scale)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, value, rtol=1e-6, atol=2e-43)


def test_empty_kernels_stay_empty() -> None:
    integers, scale = quantise(np.zeros((0, 3), np.float32))
    assert dequantise(integers, scale).shape == (0, 3)


def test_biases_and_scalars_are_not_rounded() -> None:
    assert [is_quantised(shape) for shape in ((), (5,), (1, 5), (3, 3, 4, 5))] == [False, False, True, True]
