"""The command ``unclip``: what it writes, what it says, and how a mistake ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unclip
from unclip.app.command import main
from unclip.app.strip import film_strip
from unclip.files import words
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import Decoder, DecoderStageConfig, Process, Sampling

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a model has begun to work."""
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: pytest.fail("a model was loaded"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def said(capsys: pytest.CaptureFixture) -> str:
    """What a mistake is answered with: one message on stderr, and nothing else."""
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and err.startswith("unclip: ")
    return err


def test_it_draws_and_says_where(here, tiny_model, pipeline, capsys):
    assert main(["A goldfish!", "--model", str(tiny_model), "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(rf"a-goldfish\.png  \(model {re.escape(str(tiny_model))}, seed 3, \d+\.\d s\)\n", out)
    assert names(here) == ["a-goldfish.png"]
    same = pipeline.generate("A goldfish!", seed=3)
    drawn = Image.open("a-goldfish.png")
    assert drawn.format == "PNG" and drawn.size == (64, 64)
    assert abs(np.asarray(drawn).astype(int) - np.asarray(same)).max() <= 1


def test_several_make_a_grid(here, tiny_model, loaded, pipeline):
    assert main(["a cat", "-n", "5", "-o", "cats.png"]) == 0
    sheet = Image.open("cats.png")
    assert sheet.size == (4 * 64 + 3 * 2, 2 * 64 + 2)
    fifth = np.asarray(pipeline.generate("a cat", n=5)[4]).astype(int)
    assert abs(np.asarray(sheet.crop((0, 66, 64, 130))) - fifth).max() <= 1


def test_every_option_is_passed_on(here, pipeline, monkeypatch):
    asked = {}

    class Asked:
        def generate(self, prompt, progress, **options):
            asked.update(options, prompt=prompt)
            return Image.new("RGB", (2, 2))

    monkeypatch.setattr(
        "unclip.app.cli.load", lambda model, device, dtype, offload: asked.update(device=device) or Asked()
    )
    options = {
        "seed": -2,
        "steps": "3",
        "prior_steps": "10,4",
        "upsampler_steps": "5",
        "guidance_scale": 1.5,
        "guidance_interval": "0.2,0.8",
        "apg": "0.5,9,-0.2",
        "autoguidance_scale": 1.7,
        "prior_guidance_scale": 2.5,
        "clip_guidance_scale": 3.5,
        "cutouts": 8,
        "sampler": "ddim",
        "negative_prompt": "a dog",
        "class_": 4,
        "classifier_scale": 0.5,
        "resamplings": 5,
        "n": 1,
        "device": "cpu",
    }
    line = [
        item
        for key, value in options.items()
        if key != "n"
        for item in (f"--{key.rstrip('_').replace('_', '-')}", str(value))
    ]
    assert main(["a cat", *line]) == 0
    assert asked == {**options, "prompt": "a cat"}


def lone_decoder(**net: object) -> Decoder:
    """A decoder of 8 pixels that takes no text."""
    net |= {"image_size": 8, "channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "head_channels": 8}
    return Decoder(DecoderStageConfig(net=net, process=Process(predicts="v"), sampling=Sampling(steps=3)))


def test_a_model_that_takes_no_prompt(here, capsys):
    Pipeline(lone_decoder(), name="nothing").save("nothing")
    assert main(["--model", "nothing"]) == 0
    assert Image.open("nothing.png").size == (8, 8)
    capsys.readouterr()
    assert main(["a cat", "--model", "nothing"]) == 2
    assert "takes no prompt" in said(capsys)


@pytest.mark.parametrize("classes", [None, 3])
def test_a_decoder_alone_is_a_model(here, capsys, classes):
    """Its checkpoint, or the folder of its run, which holds other things too."""
    stage = lone_decoder(classes=classes)
    stage.save("run/decoder.safetensors")
    Path("run/metrics.jsonl").touch()
    Pipeline(stage).save("model")
    for model, file in (
        ("run", "run.png"),
        ("run/decoder.safetensors", "run-decoder-safetensors.png"),
        ("model", "model.png"),
    ):
        assert main(["--model", model, "--seed", "1", "--no-metadata"]) == 0  # whose names differ
        assert Path(file).read_bytes() == Path("run.png").read_bytes()
    capsys.readouterr()
    assert main(["a cat", "--model", "run"]) == 2
    assert "the model run takes no prompt" in said(capsys)


def test_a_film_strip_beside_the_picture(here, tiny_model, loaded, pipeline, capsys):
    """Of every picture the decoder's steps, two rows of what was chosen; the picture is the same."""
    line = ["a cat", "--model", str(tiny_model), "--steps", "6", "-n", "17"]
    assert main([*line, "-o", "plain.png"]) == 0
    assert main([*line, "-o", "cat.png", "--strip", "strip.png", "--columns", "3"]) == 0
    assert names(here) == ["cat.png", "plain.png", "strip.png"]
    assert "cat.png  (model" in capsys.readouterr().out
    pictures = [np.asarray(Image.open(file)).astype(int) for file in ("cat.png", "plain.png")]
    assert abs(pictures[0] - pictures[1]).max() <= 1
    strip, frames = Image.open("strip.png"), []
    assert strip.size == (3 * 66 - 2, 34 * 66 - 2)
    pipeline.generate("a cat", n=17, batch_size=17, steps=6, watch=frames.append)
    assert [step.t for step in frames][-1] == 0 and len(frames) == 6
    assert abs(np.asarray(strip).astype(int) - np.asarray(film_strip(frames, 3))).max() <= 1


@pytest.mark.parametrize("options, words", [
    (["--strip", "strip.jpg"], "strip.jpg: pictures are written as PNG"),
    (["--strip", "nowhere/strip.png"], "nowhere/strip.png cannot be written"),
    (["--strip", "a-cat.png"], "a-cat.png is the picture's file"),
    (["--strip", "strip.png", "--columns", "0"], "--columns must be at least 1, not 0"),
])  # fmt: skip
def test_strips_that_cannot_be(here, no_work, capsys, options, words):
    assert main(["a cat", *options]) == 2
    assert words in said(capsys) and names(here) == []


def test_no_strip_of_what_cannot_be_drawn(here, loaded, capsys):
    assert main(["a cat", "--strip", "strip.png", "-n", "0"]) == 2
    assert "n must be at least 1" in said(capsys) and names(here) == []


@pytest.mark.parametrize("line, words", [
    ([""], "the prompt is empty"),
    (["  "], "the prompt is empty"),
    (["a cat", "-o", "nowhere/cat.png"], "nowhere/cat.png cannot be written"),
    (["a cat", "-o", "file/cat.png"], "file/cat.png cannot be written"),
    (["a cat", "-o", "folder"], "folder"),
    (["a cat", "-o", "folder.png"], "folder.png is a folder"),
    (["a cat", "-o", "cat.jpg"], "cat.jpg: pictures are written as PNG"),
])  # fmt: skip
def test_what_can_be_known_before_the_work(here, no_work, capsys, line, words):
    (here / "file").touch()
    (here / "folder").mkdir()
    (here / "folder.png").mkdir()
    assert main(line) == 2
    assert words in said(capsys)
    assert names(here) == ["file", "folder", "folder.png"] and not names(here / "folder.png")


def test_a_folder_without_permission(here, no_work, capsys, monkeypatch):
    (here / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path("locked"))  # root may do all
    assert main(["a cat", "-o", "locked/cat.png"]) == 2
    assert "cannot be written" in said(capsys)


@pytest.mark.parametrize("options, words", [
    (["--steps", "0"], "steps: "),
    (["--steps", "many"], "steps must be a positive number, sections such as"),
    (["--steps", "2000"], "2000"),
    (["--sampler", "euler"], "known: ddpm, ddim, dpm++2m"),
    (["--guidance-scale", "nan"], "guidance_scale: "),
    (["-n", "0"], "n must be at least 1"),
])  # fmt: skip
def test_options_out_of_range(here, loaded, capsys, options, words):
    assert main(["a cat", *options]) == 2
    assert words in said(capsys)
    assert names(here) == []


@pytest.mark.parametrize("options, words", [
    (["--seed", "1.5"], "--seed: invalid int value: '1.5'"),
    (["--seed", "a"], "--seed: invalid int value: 'a'"),
    (["--device", "abacus"], "'abacus' cannot be used here"),
    (["--stepps", "3"], "unrecognized arguments"),
])  # fmt: skip
def test_options_that_cannot_be_read(here, no_work, capsys, options, words):
    with pytest.raises(SystemExit) as stopped:
        main(["a cat", *options])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err and names(here) == []


def test_models_that_are_none(here, capsys, tiny_model):
    (here / "empty").mkdir()
    (here / "damaged").mkdir()
    (here / "damaged" / "model.json").write_text("{")
    decoder = str(tiny_model / "decoder.safetensors")
    for model, wanted in (
        ("nosuch", "there is no model 'nosuch'"),
        ("empty", "empty is not a model"),
        (decoder, "only a decoder, which takes CLIP's embeddings and text; training.chain"),
        (str(tiny_model / "prior.safetensors"), "holds a prior, not a decoder"),
        (str(tiny_model / "upsampler-64.safetensors"), "takes a smaller picture; "),
        ("damaged", "is damaged"),
        (str(tiny_model / "model.json"), "there is no model"),
    ):
        assert main(["a cat", "--model", model]) == 2
        assert wanted in said(capsys)
    assert names(here) == ["damaged", "empty"]


def test_a_prompt_that_is_too_long_is_a_note(here, loaded, capsys):
    assert main([" ".join(["cat"] * 14 + ["dog", "fish"]), "-o", "cat.png"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("note: the prompt is longer") and "'dog fish'" in err and err.count("\n") == 1


def test_nothing_half_written(here, loaded, capsys, monkeypatch):
    (here / "cat.png").write_bytes(b"a picture of before")

    def full(self, file, *_, **__):
        file.write(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", full)
        assert main(["a cat", "-o", "cat.png", "--overwrite"]) == 2
    assert "no space left" in said(capsys)
    assert names(here) == ["cat.png"] and (here / "cat.png").read_bytes() == b"a picture of before"

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "generate", stopped)
    assert main(["a cat", "-o", "cat.png", "--overwrite"]) == 130
    assert "stopped" in said(capsys)
    assert (here / "cat.png").read_bytes() == b"a picture of before"


def test_a_defect_of_ours_is_not_hidden(here, loaded, monkeypatch):
    monkeypatch.setattr(Pipeline, "generate", lambda *_, **__: {}["missing"])
    with pytest.raises(KeyError):
        main(["a cat"])


def test_without_a_prompt_it_helps(here, no_work, capsys):
    assert main([]) == 2
    assert "usage: unclip" in capsys.readouterr().out


@pytest.mark.parametrize("text, name", [
    ("a goldfish", "a-goldfish"),
    ("  A -- goldfish?! ", "a-goldfish"),
    ("../../etc/passwd", "etc-passwd"),
    ("金魚", "金魚"),
    ("!?", "picture"),
    ("x" * 300, "x" * 80),
    ("金" * 100, "金" * 26),
])  # fmt: skip
def test_words_of_a_file_name(text, name):
    assert words(text) == name


def test_as_a_command_of_its_own(here, tiny_model):
    """Once for real: another process, its exit code, its file."""
    root = Path(unclip.__file__).parent.parent
    command = [sys.executable, "-m", "unclip", "a goldfish", "--model", str(tiny_model)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a-goldfish.png  (model ") and names(here) == ["a-goldfish.png"]
    assert done.stderr == ""
