"""Checkpoints: what they keep, how they are written, and what they refuse."""

from __future__ import annotations

import json
import stat

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unclip.checkpoint import (
    FORMAT,
    CheckpointError,
    load_checkpoint,
    load_strictly,
    read_header,
    save_checkpoint,
)
from unclip.files import write_json, written_aside


def tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    conv = torch.randn(4, 3, 3, 3, generator=g).to(memory_format=torch.channels_last)
    return {"conv": conv, "count": torch.arange(5), "none": torch.zeros(0), "on": torch.tensor(True)}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "deep" / "net.safetensors"
    save_checkpoint(path, tensors(), kind="decoder", config={"net": {"channels": 4}}, pictures_seen=12)
    return path


def test_all_that_was_saved_comes_back(saved):
    loaded, header = load_checkpoint(saved, "decoder")
    assert header == {
        "format": FORMAT,
        "kind": "decoder",
        "config": {"net": {"channels": 4}},
        "pictures_seen": 12,
    }
    assert loaded.keys() == tensors().keys()
    for key, value in tensors().items():
        assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], value), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_and_loads_as_float32(saved, dtype):
    small = saved.with_name("small.safetensors")
    save_checkpoint(small, tensors(), kind="decoder", config={}, dtype=dtype)
    loaded, _ = load_checkpoint(small)
    assert loaded["conv"].dtype == torch.float32
    assert torch.equal(loaded["conv"], tensors()["conv"].to(dtype).float())
    assert torch.equal(loaded["count"], torch.arange(5))  # whole numbers are left alone
    assert saved.stat().st_size - small.stat().st_size > 4 * 27  # 108 floats, two bytes less each


def test_the_kind_is_asked_for(saved):
    assert read_header(saved)["kind"] == "decoder"
    with pytest.raises(CheckpointError, match="holds a decoder, not a prior"):
        load_checkpoint(saved, "prior")


def write_header(path, text: str | None) -> None:
    save_file({"a": torch.zeros(1)}, path, metadata=None if text is None else {"unclip": text})


@pytest.mark.parametrize("text, said", [
    (None, "not written by unclip"),
    ("{", "damaged header"),
    ("[1]", "damaged header"),
    ("{}", "damaged header"),
    (json.dumps({"format": FORMAT, "kind": "decoder"}), "damaged header"),
    (json.dumps({"format": FORMAT + 1, "kind": "decoder", "config": {}}), f"format {FORMAT + 1}"),
])  # fmt: skip
def test_headers_that_are_not_ours(tmp_path, text, said):
    path = tmp_path / "other.safetensors"
    write_header(path, text)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_files_that_are_missing_or_damaged(saved, tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="there is no checkpoint at"):
            load_checkpoint(path)
    whole = saved.read_bytes()
    for length in (0, 4, 60, len(whole) - 1):  # nothing, half a length, half a header, half the data
        saved.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a readable safetensors file"):
            load_checkpoint(saved)
    saved.write_bytes(b"PK\x03\x04 something else entirely" * 9)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(saved)


def test_written_aside_is_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    with written_aside(path) as aside:
        aside.write_text("old")
        assert not path.exists()
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half")
        raise RuntimeError("the power went")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444  # others may read what was written


def test_failed_writes_leave_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "b", {}, kind="prior", config={}, source=object())
    assert not list(tmp_path.iterdir())


def test_json_is_readable(tmp_path):
    write_json(tmp_path / "a.json", {"name": "金魚"})
    assert "金魚" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "金魚"}


def test_load_strictly_lists_everything_and_changes_nothing():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    wrong = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(4), "1.wieght": torch.zeros(1, 3)}
    with pytest.raises(CheckpointError) as caught:
        load_strictly(module, wrong, "some file")
    for said in (
        "some file",
        "missing: ['1.bias', '1.weight']",
        "unexpected: ['1.wieght']",
        "0.bias (4,) for (3,)",
    ):
        assert said in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    load_strictly(module, {key: value + 1 for key, value in before.items()}, "a good file")
    assert all(torch.equal(value, before[key] + 1) for key, value in module.state_dict().items())
