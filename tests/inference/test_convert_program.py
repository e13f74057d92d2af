"""python -m inference.convert: what it writes loads without the converter, and draws the same."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import public
import pytest
from places import ROOT

import unclip
from inference.convert import main
from unclip.checkpoint import load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*is published under")

PROBE = """
import sys, unclip
pipeline = unclip.load(sys.argv[1], "cpu")
found = {name for name in sys.modules if name.startswith("unclip.convert.")}
families = {"catalogue", "family", "openai", "openai.families"}  # names alone
families |= {"kandinsky", "kandinsky.family", "karlo", "karlo.family"}
assert found <= {"unclip.convert." + name for name in families}, found
"""


@pytest.fixture
def written(tmp_path, monkeypatch, capsys) -> Path:
    public.publish(monkeypatch, tmp_path / "cache")
    assert main([public.NAME, str(tmp_path / "ours")]) == 0
    assert str(tmp_path / "ours") in capsys.readouterr().out
    return tmp_path / "ours"


@pytest.mark.bitwise
def test_it_loads_without_the_converter_and_draws_the_same(written):
    ours, theirs = (unclip.load(model, "cpu") for model in (written, public.NAME))
    assert (np.asarray(ours.generate(seed=1)) == np.asarray(theirs.generate(seed=1))).all()
    assert ours.name == public.NAME and ours.description == theirs.description
    env = {**os.environ, "PYTHONPATH": str(ROOT), "UNCLIP_CACHE": os.devnull}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(written)], capture_output=True, text=True, timeout=600, env=env
    )
    assert done.returncode == 0, done.stderr


def test_written_again_it_is_the_same_to_the_byte(written, tmp_path):
    assert main([str(written), str(tmp_path / "again")]) == 0
    files = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert files == [Path("decoder.safetensors"), Path("model.json")]
    for file in files:
        assert (written / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_half_precision_takes_half_the_disk(written, tmp_path):
    assert main([public.NAME, str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    sizes = [(folder / "decoder.safetensors").stat().st_size for folder in (written, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    # The fixture's weights are bfloat16's numbers: nothing is rounded.
    tensors = [load_checkpoint(folder / "decoder.safetensors")[0] for folder in (written, tmp_path / "half")]
    assert all((tensors[0][key] == tensors[1][key]).all() for key in tensors[0])


@pytest.mark.attack
def test_what_fails_leaves_nothing_and_can_be_done_again(written, tmp_path, monkeypatch, capsys):
    def names() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    def full(pipeline, folder, dtype):
        (folder / "clip").mkdir(parents=True)
        raise OSError(errno.ENOSPC, "full", str(folder / "decoder.safetensors"))

    with monkeypatch.context() as patched:
        patched.setattr("unclip.pipeline.pipeline.Pipeline.save", full)
        assert main([str(written), str(tmp_path / "new")]) == 2
    assert "decoder.safetensors could not be written" in capsys.readouterr().err
    assert names() == {"cache", "ours"}
    (tmp_path / ".new.partial").mkdir()  # of one that was killed
    assert main([str(written), str(tmp_path / "new")]) == 0
    assert names() == {"cache", "ours", "new"}


def test_the_manifest_keeps_the_licence(written):
    assert "MIT" in json.loads((written / "model.json").read_text())["description"]


@pytest.mark.parametrize(
    "line, said",
    [
        (["{new}", "{there}"], "not empty"),
        (["nothing", "{new}"], "there is no model 'nothing'"),
        ([public.NAME, "{file}/x"], "cannot be written"),
    ],
)
def test_bad_input_is_one_message(tmp_path, monkeypatch, capsys, line, said):
    public.publish(monkeypatch, tmp_path / "cache")
    there, file = tmp_path / "there", tmp_path / "file"
    there.mkdir()
    (there / "a").write_text("b")
    file.write_text("")
    names = {"new": tmp_path / "new", "there": there, "file": file}
    assert main([text.format(**names) for text in line]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not (tmp_path / "new").exists()
