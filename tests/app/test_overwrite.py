"""A picture that is there is replaced only where somebody says so; odd input is refused before work."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline

import inference.denoising
import inference.evaluate
import inference.gallery
import inference.ladder
import inference.likelihood
import unclip
from unclip.app.command import main
from unclip.clip import load_clip
from unclip.pipeline.canvas import canvas_of, opened
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import load_stage

pytestmark = pytest.mark.attack


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """Instead of a model: pictures that grow redder."""
    texts = []

    class Noted:
        def generate(self, prompt, **_):
            texts.append(prompt)
            return Image.new("RGB", (4, 4), (len(texts), 0, 0))

    monkeypatch.setattr("unclip.app.cli.load", lambda *_: Noted())
    return texts


@pytest.fixture
def no_work(monkeypatch) -> None:
    for module in ("unclip.app.cli", "inference.denoising", "inference.likelihood"):
        monkeypatch.setattr(f"{module}.load", lambda *_: pytest.fail("a model was loaded"))


def names() -> list[str]:
    return sorted(os.listdir("."))


def test_a_second_picture_of_the_same_words_has_a_name_of_its_own(drawn, capsys):
    for _ in range(3):
        assert main(["a cat"]) == 0
    assert re.findall(r"a-cat\S*", capsys.readouterr().out) == ["a-cat.png", "a-cat-2.png", "a-cat-3.png"]
    reds = [Image.open(name).getpixel((0, 0))[0] for name in ("a-cat.png", "a-cat-2.png", "a-cat-3.png")]
    assert reds == [1, 2, 3]
    assert main(["a cat", "--overwrite"]) == 0 and len(names()) == 3
    assert Image.open("a-cat.png").getpixel((0, 0))[0] == 4


@pytest.mark.parametrize("run", [
    lambda file: main(["a cat", "-o", file]),
    lambda file: main(["a cat", "-o", "new.png", "--strip", file]),
    lambda file: inference.gallery.main(["icons", file, "--prompts", "a cat"]),
    lambda file: inference.gallery.main(["icons", "new.png", "--prompts", "a cat", "--blind", file]),
    lambda file: inference.denoising.main(["icons", "x.tar", file]),
    lambda file: inference.evaluate.main(["icons", "x.tar", "--train-shards", "x.tar", "--json", file]),
    lambda file: inference.ladder.main(["x", "icons", "--judge", "y", "--json", file]),
    lambda file: inference.likelihood.main(["icons", "x.tar", "--json", file]),
])  # fmt: skip
@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_is_named_is_not_replaced_unasked(no_work, capsys, run, link):
    if link:
        Path("mine.png").symlink_to("elsewhere.png")
    else:
        Path("mine.png").write_text("mine")
    assert run("mine.png") == 2
    assert "mine.png is there; name another file, or give --overwrite" in capsys.readouterr().err
    assert names() == ["mine.png"] and (link or Path("mine.png").read_text() == "mine")


def test_a_file_is_replaced_where_it_is_said(drawn):
    Path("mine.png").write_text("mine")
    assert main(["a cat", "-o", "mine.png", "--overwrite"]) == 0
    assert Image.open("mine.png").size == (4, 4)


def test_what_a_killed_program_left_of_a_picture_is_removed(drawn):
    left = Path(".a-cat.png.abcdefgh.partial")
    left.touch()
    os.utime(left, (0, 0))
    assert main(["a cat"]) == 0 and names() == ["a-cat.png"]


def fifo(name: str) -> None:
    os.mkfifo(name)


@pytest.mark.parametrize("make, said", [
    (fifo, "x is a pipe, not a file"),
    (lambda name: Path(name).symlink_to("/dev/zero"), "x is a device, not a file"),
    (lambda name: Path(name).mkdir(), "x is a folder, not a file"),
    (lambda name: None, "there is no file x"),
    (lambda name: Path(name).touch(), "x cannot be used as a picture: an empty file"),
    (lambda name: Path(name).write_text("<html>"), "x cannot be used as a picture: it is a page of the web"),
    (lambda name: Path(name).write_bytes(b"P5 99999 99999 255\n"), "(9999800001 pixels) exceeds limit"),
], ids=["fifo", "zeros", "folder", "nothing", "empty", "html", "bomb"])  # fmt: skip
@pytest.mark.parametrize("flag", ["--image", "--mask"])
def test_pictures_that_are_none_are_refused_before_work(no_work, capsys, flag, make, said):
    make("x")
    assert main(["a cat", flag, "x"]) == 2
    assert said in capsys.readouterr().err


def test_pictures_of_any_mode_are_upright(tmp_path):
    wide = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4) * 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    wide.save("turned.png", exif=exif)
    upright = wide.rotate(-90, expand=True).convert("RGB")
    for one in ("turned.png", Path("turned.png"), Image.open("turned.png")):
        assert opened(one).tobytes() == upright.tobytes() and opened(one).size == (2, 4)
    with pytest.raises(ValueError, match="a picture is one of PIL or the path of a file, not int"):
        opened(7)
    for mode in ("1", "L", "P", "CMYK", "I;16", "F"):
        assert opened(Image.new(mode, (4, 4))).mode == "RGB"
    assert canvas_of(Image.new("LA", (4, 4)), Image.new("1", (4, 4), 1)).repaint.all()


@pytest.mark.parametrize("options, said", [
    ({"seed": True}, "seed must be an integer, not True"),
    ({"n": True}, "n must be an integer, not True"),
    ({"n": -1}, "n must be at least 1, not -1"),
    ({"n": 10**9}, "1,000,000,000 pictures are more than one call draws"),
    ({"n": 10**30}, "pictures are more than one call draws"),
    ({"batch_size": True}, "batch_size must be an integer, not True"),
    ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
    ({"steps": True}, "steps must be a number or a text, not True"),
    ({"steps": -1}, "steps must be a positive number"),
    ({"upsampler_steps": 5000}, "steps must be between 1 and"),
    ({"prior_steps": "ddim5000"}, "5000"),
    ({"sampler": ["ddim"]}, "sampler: "),
    ({"class_": -1}, "class_: "),
    ({"guidance_scale": True}, "guidance_scale must be a number or a text, not True"),
    ({"clip_guidance_scale": -1}, "clip_guidance_scale: "),
    ({"guidance_scale": 3e38}, "guidance_scale: Input should be less than or equal to 10000"),
    ({"prior_guidance_scale": float("inf")}, "prior_guidance_scale: "),
    ({"clip_guidance_scale": float("nan")}, "clip_guidance_scale: "),
    ({"negative_prompt": "a\0"}, r"the negative prompt holds '\x00'"),
    ({"negative_prompt": 7}, "negative_prompt: "),
    ({"prompt": "a\0cat"}, r"the prompt holds '\x00'"),
    ({"prompt": "a \ud800"}, r"the prompt holds '\ud800'"),
    ({"prompt": "x" * 10_001}, "the prompt has 10,001 characters"),
    ({"prompt": True}, "a prompt must be text, not True"),
    ({"prompt": b"a cat"}, "a prompt must be text, not b'a cat'"),
    ({"prompt": {"a cat": 1}}, "a prompt must be text, not {'a cat': 1}"),
    ({"progress": 5}, "progress must be a function, not 5"),
    ({"watch": "x"}, "watch must be a function, not 'x'"),
    ({"image": "nothing.png", "mask": "nothing.png"}, "there is no file nothing.png"),
])  # fmt: skip
def test_arguments_of_python_have_one_rule_each(monkeypatch, options, said):
    model = tiny_pipeline()
    monkeypatch.setattr(Pipeline, "understood", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=re.escape(said)):
        model.generate(**{"prompt": "a cat", **options})


def test_a_blank_negative_prompt_is_none():
    model = tiny_pipeline()
    plain = model.generate("a cat").tobytes()
    assert all(model.generate("a cat", negative_prompt=text).tobytes() == plain for text in ("", " \n"))


def test_a_prompt_of_many_writings_is_drawn():
    assert tiny_pipeline().generate("金魚, naïve, 👩\u200d🚀\tand\nmore").size == (64, 64)


@pytest.mark.parametrize("device", ["abacus", "cuda:99", 1.5, "", "cpu:x"])
def test_an_unknown_device_is_said_from_python_too(device, tiny_model):
    for load in (
        lambda: unclip.load("icons", device),
        lambda: load_clip(tiny_model / "clip", device),
        lambda: load_stage(tiny_model / "prior.safetensors", device=device),
        lambda: tiny_pipeline().place(device),
    ):
        with pytest.raises(ValueError, match="cannot be used here"):
            load()


@pytest.mark.parametrize("part", ["clip", "prior", "decoder", "upsampler"])
def test_weights_that_are_no_numbers_draw_nothing(capsys, monkeypatch, part):
    model = tiny_pipeline()
    stages = {"clip": model.clip, "prior": model.prior, "decoder": model.decoder}
    broken = stages.get(part, model.upsamplers[0])
    # What a file may hold: one number among millions.
    weight = max(broken.parameters(), key=lambda value: value.numel())
    weight.data.fill_(float("nan"))
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: model)
    assert main(["a cat"]) == 2 and names() == []
    err = capsys.readouterr().err
    assert "made numbers that are infinite or none" in err and "its weights are damaged" in err
    assert f"the {'CLIP' if part == 'clip' else part} " in err


@pytest.mark.parametrize("threshold", ["static", "dynamic", "none"])
@pytest.mark.parametrize("part, scale, size", [
    ("decoder", 10_000, 1e37),
    ("decoder", 3, 3e38),
    ("prior", 3, 3e38),
])  # fmt: skip
def test_guidance_that_overflows_draws_nothing(part, threshold, scale, size):
    """Infinite numbers, which a clamp would make white or black; and their difference, which is none."""
    model = tiny_pipeline()
    stage = getattr(model, part)
    sampling = stage.config.sampling.model_copy(update={"threshold": threshold, "guidance_scale": scale})
    stage.config = stage.config.model_copy(update={"sampling": sampling})
    with torch.no_grad():
        for weight in stage.parameters():  # those that begin at zero, too: what is said is to matter
            weight.copy_(torch.linspace(-0.5, 0.5, weight.numel()).view_as(weight))
        stage.network.out.weight.mul_(size)
    with pytest.raises(ValueError, match=f"the {part} made numbers .*guidance that is too strong"):
        model.generate("a cat")
