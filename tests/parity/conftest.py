"""Runs and exports that several parity tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.exported import KINDS, save_faces_run, save_text_run
from support.shared import made_once

from genaffect_jax.export.diffusers import export_diffusers


@pytest.fixture(scope="session")
def runs(trained_workdir, tmp_path_factory) -> dict[str, Path]:
    """The run folder of each kind of model: a trained avatar model, and random ones with text and with faces."""
    makers = {"text": save_text_run, "faces": save_faces_run}
    made = {kind: made_once(tmp_path_factory, f"{kind}_run", make) for kind, make in makers.items()}
    return {"avatar": trained_workdir, **made}


@pytest.fixture(scope="session")
def folders(runs, tmp_path_factory) -> dict[str, Path]:
    """The exported folder of each kind of model, float32."""

    def make(kind):
        return lambda folder: export_diffusers(runs[kind], folder / "exported")

    return {kind: made_once(tmp_path_factory, f"{kind}_export", make(kind)) / "exported" for kind in KINDS}
