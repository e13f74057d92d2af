"""ECLIPSE's prior as ``training.prior`` trains it: from noise to an embedding in one step."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from training_programs import writer

from training import prior
from unclip.stages import load_stage

ECLIPSE = ["objective=eclipse", "net.timed=false", "drop_text=0", "sampling.steps=1",
           "sampling.guidance_scale=1", "sampling.candidates=1"]  # fmt: skip


def test_it_is_trained_by_its_recipe(tmp_path: Path, tiny_model: Path):
    path = writer(tmp_path, tiny_model)("prior", pictures=32, validate_every=16)
    assert prior.main([str(path), *(f"stage.{one}" for one in ECLIPSE)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "mse", "contrast"} <= lines[0].keys() and any(
        "validation/contrast" in one for one in lines
    )
    for line in lines:
        if "contrast" in line:
            assert abs(line["loss"] - line["mse"] - 0.2 * line["contrast"]) < 1e-4
    stage = load_stage(tmp_path / "run" / "prior.safetensors")
    assert stage.config.objective == "eclipse"
    assert not [name for name in stage.state_dict() if ".time." in name]
    assert stage.embed_std.std() > 0 and torch.isfinite(stage.network.out.weight).all()
