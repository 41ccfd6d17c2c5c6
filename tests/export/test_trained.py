"""Exports read the model that `Pipeline` samples."""

from __future__ import annotations

from support.sd3_runs import run_config, save_run, set_sampling

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import LoraConfig, SamplingDefaults
from genaffect_jax.export.merge import merge_lora
from genaffect_jax.export.trained import TrainedDenoiser


def test_settings_that_changed_after_the_checkpoint_are_the_models_and_stay_in_a_merged_run(tmp_path) -> None:
    own = SamplingDefaults(steps=7, solver="dpm++", guidance_expression=1.0)
    save_run(tmp_path / "run", run_config(LoraConfig(rank=2)))
    assert TrainedDenoiser(tmp_path / "run").config.sampling == SamplingDefaults()
    set_sampling(tmp_path / "run", own)
    assert TrainedDenoiser(tmp_path / "run").config.sampling == own
    merge_lora(tmp_path / "run", tmp_path / "merged")
    assert RunDir(tmp_path / "merged").sampling_defaults() == own
