"""The soak test: what it trains on a GPU, and what it calls a difference between machines."""

import copy

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from genaffect_jax.compile_check.train_step import lower_train_step
from genaffect_jax.config import MeshConfig
from genaffect_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def soak(load_benchmark):
    return load_benchmark("soak")


@pytest.mark.parametrize("deterministic", [False, True])
def test_with_attention_the_step_has_cudnn_attention_whose_gradient_repeats_only_if_asked_for(
    soak, tmp_path, monkeypatch, deterministic
):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91900)
    config = soak.tiny_config(tmp_path, 40, attention=True, deterministic=deterministic)
    text = lower_train_step(config, make_mesh(MeshConfig(), jax.devices()[:1]), "gpu").as_text()
    calls = [line for line in text.splitlines() if "fmhaSoftmaxBackward" in line]
    assert calls
    assert {"force_deterministic" in line for line in calls} == {deterministic}


def test_digests_differ_in_sums_losses_or_settings_and_then_name_the_environments(soak):
    one = {
        "settings": {"steps": 40},
        "environment": {"device_kind": "NVIDIA H200"},
        "sha256": {"parameters": "a", "ema": "b"},
        "losses": {"2": 0.5, "3": 0.25},
    }
    other = copy.deepcopy(one)
    other["environment"]["device_kind"] = "NVIDIA H100"
    assert soak.digest_differences(one, other) == []
    other["sha256"]["ema"] = "c"
    other["losses"]["3"] = 0.26
    assert soak.digest_differences(one, other) == [
        "ema differs",
        "1 losses differ, the first in step 3: 0.26, expected 0.25",
        "device_kind was NVIDIA H200, is NVIDIA H100",
    ]
    other["settings"]["steps"] = 80
    assert soak.digest_differences(one, other) == [
        "is of a training with {'steps': 40}, this is one with {'steps': 80}"
    ]
