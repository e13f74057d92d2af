"""Pictures say how they were made, and are made again: by every verb, and by the shipped model."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import unclip
from unclip.app.command import main
from unclip.data.images import save_png
from unclip.pipeline.pipeline import Pipeline
from unclip.provenance import Record, record_of
from unclip.stages import DecoderStageConfig


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: None) -> None:
    """In a folder with two pictures and a mask, of which one is not square, and has an EXIF of its own."""
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save("a.png")
    Image.fromarray(values[::-1, :24]).save("b.png")
    Image.fromarray(np.eye(24, dtype=np.uint8) * 255).save("m.png")


COMMANDS = {
    "generate": ["a goldfish", "-n", "3", "--seed", "-7", "--steps", "3", "--negative-prompt", "ein Hügel"],
    "mixed": ["a cat", "--image-prompt", "a.png", "0.7", "--image-prompt", "a dog"],
    "from one text": ["--image-prompt", "a dog"],
    "inpaint": ["inpaint", "b.png", "m.png", "a cat", "-n", "2"],
    "vary": ["vary", "a.png", "-n", "3", "--spread", "0.25", "--steps", "4"],
    "interpolate": ["interpolate", "a.png", "a car", "-n", "3", "--steps", "4"],
    "edit": ["edit", "a.png", "a cat", "a dog", "-n", "2", "--steps", "4"],
    "redraw": ["redraw", "a.png", "a cat", "--strength", "0.5"],
    "redrawn by nothing": ["redraw", "a.png", "a cat", "--strength", "0"],
    "upscale": ["upscale", "b.png", "--upsampler-steps", "2"],
}


@pytest.mark.bitwise
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_again_is_the_same_file_to_the_byte(command, capsys):
    assert main([*command, "-o", "drawn.png"]) == 0
    assert main(["again", "drawn.png", "--model", "tiny"]) == 0
    assert "drawn-again.png  (the same pixels, " in capsys.readouterr().out
    assert Path("drawn.png").read_bytes() == Path("drawn-again.png").read_bytes()


def test_a_cell_of_a_grid_is_the_picture_of_its_number(pipeline):
    assert main(["a cat", "-n", "3", "--seed", "5", "-o", "sheet.png"]) == 0
    assert main(["again", "sheet.png", "--cell", "2", "--model", "tiny", "-o", "second.png"]) == 0
    (alone,) = pipeline.generate("a cat", n=3, seed=5, only=[1])
    assert np.abs(pixels("second.png") - np.asarray(alone, dtype=int)).max() <= 1
    made = record_of("second.png")
    assert (made.k, made.n, made.seed, made.prompt) == (1, 3, 5, "a cat")


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


def test_the_shipped_models_first_picture_is_drawn_again_by_its_name_alone(monkeypatch, capsys):
    icons = unclip.load("icons", "cpu")
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: icons)
    assert main(["a goldfish"]) == 0 and main(["again", "a-goldfish.png"]) == 0
    assert Path("a-goldfish.png").read_bytes() == Path("a-goldfish-again.png").read_bytes()
    capsys.readouterr()
    assert main(["info", "a-goldfish.png"]) == 0
    said = capsys.readouterr().out
    assert "prompt                 a goldfish\n" in said and f"icons {icons.digest()}\n" in said
    with Image.open("a-goldfish.png") as picture:
        line = picture.text["parameters"]
    sampling = icons.decoder.config.sampling
    assert line == (
        f"a goldfish\nSteps: {sampling.steps}, Sampler: {sampling.sampler}, CFG scale: "
        f"{sampling.guidance_scale}, Seed: 0, Size: 256x256, Model hash: {icons.digest()}, Model: icons, "
        f"Version: unclip {unclip.__version__}"
    )


def test_what_a_record_holds(pipeline, capsys):
    assert main([*COMMANDS["generate"], "-o", "drawn.png"]) == 0
    assert main(["info", "drawn.png", "--json"]) == 0
    said = capsys.readouterr().out
    grid = json.loads(said[said.index("{") :])
    assert grid["columns"] == 3 and [cell["k"] for cell in grid["cells"]] == [0, 1, 2]
    first = grid["cells"][0]
    wanted = {"verb": "generate", "prompt": "a goldfish", "seed": -7, "n": 3, "size": [64, 64]}
    assert wanted.items() <= first.items()
    assert first["options"] == {"steps": 3, "negative_prompt": "ein Hügel"}
    assert first["in_force"]["decoder"] == {"sampler": "dpm++2m", "steps": 3, "guidance_scale": 2.0}
    assert set(first["in_force"]) == {"prior", "decoder", "upsampler 1"}
    with Image.open("drawn.png") as picture:
        assert set(picture.text) == {"unclip"}  # a line of parameters is of one picture


def test_several_prompts_are_each_recorded_as_if_asked_for_alone(pipeline):
    pictures = pipeline.generate(["a cat", "a dog"], n=2, seed=3)
    made = [record_of(picture) for picture in pictures]
    assert [(one.prompt, one.k, one.batch_size) for one in made] == [
        ("a cat", 0, None), ("a cat", 1, None), ("a dog", 0, None), ("a dog", 1, None),
    ]  # fmt: skip
    assert record_of(pipeline.generate("a cat")).batch_size == 16


def test_no_metadata_leaves_none(pipeline):
    for command in (["a cat"], ["vary", "a.png"]):
        assert main([*command, "--no-metadata", "-o", "x.png", "--overwrite"]) == 0
        with Image.open("x.png") as picture:
            assert picture.text == {}
    unclip.save(pipeline.generate("a cat"), "y.png")
    assert isinstance(record_of("y.png"), Record)


def test_only_chooses_pictures_of_all(pipeline):
    whole = pipeline.generate(["a cat", "a dog"], n=2, seed=1)
    some = pipeline.generate(["a cat", "a dog"], n=2, seed=1, only=[3, 0])
    for k, picture in zip([3, 0], some, strict=True):
        assert np.abs(np.asarray(picture, dtype=int) - np.asarray(whole[k], dtype=int)).max() <= 1
    for wrong in ([], [4], [-1], "01", [True], 1):
        with pytest.raises(ValueError, match="only"):
            pipeline.generate(["a cat", "a dog"], n=2, only=wrong)


def test_the_digest_is_of_weights_and_configurations(pipeline, tiny_model):
    other = unclip.load(tiny_model)
    assert other.digest() == pipeline.digest() == other.digest()
    with torch.no_grad():
        next(other.decoder.parameters()).flatten()[0] += 1
    assert other.digest() != pipeline.digest()
    bare = Pipeline(pipeline.decoder, pipeline.prior, [], pipeline.clip, pipeline.name)
    assert bare.digest() != pipeline.digest()


def test_a_setting_that_a_later_version_adds_changes_the_digest_only_where_it_is_used(tiny_model):
    class Later(DecoderStageConfig):
        new: int = 0

    now = unclip.load(tiny_model).digest()
    for value in (0, 1):
        other = unclip.load(tiny_model)
        other.decoder.config = Later(**other.decoder.config.model_dump(), new=value)
        assert (other.digest() == now) == (value == 0)


REFUSED = {  # what is done to the picture or its record, and what is said then
    "another picture": (lambda made: Image.new("RGB", (9, 9)).save("a.png"), "made from the picture 'a.png'"),
    "no picture": (lambda made: Path("a.png").unlink(), "give the file by --image"),
    "another version": (lambda made: change(made, version="9.9"), "drawn by unclip 9.9, and this is"),
    "another model": (lambda made: change(made, digest="0" * 12), "with the digest 000000000000"),
    "another form": (lambda made: change(made, format=2), "take a later version"),
    "an unknown verb": (lambda made: change(made, verb="system"), "verb"),
    "an unknown argument": (lambda made: change(made, arguments={"batch_size": 10**9}), "arguments"),
    "an unknown option": (lambda made: change(made, options={"mask": "/etc/passwd"}), "mask"),
    "an option that is none": (lambda made: change(made, options={"steps": -1}), "steps"),
    "a path": (
        lambda made: change(made, arguments={"picture": {"name": "../a.png", "sha256": "0" * 64}}),
        "made from the picture '../a.png'",
    ),
    "no JSON": (lambda made: change(made, text="{"), "it is no JSON"),
    "deep JSON": (lambda made: change(made, text='{"a":' * 9_000), "nested too deep|it is no JSON"),
    "a list": (lambda made: change(made, text="[]"), "no JSON object"),
    "a number of pictures": (lambda made: change(made, k=10**30, n=1), "only"),
    "cells without end": (
        lambda made: change(made, text='{"columns":1,"cells":[' + "0," * 70_000 + "0]}"),
        "no record of a grid",
    ),
}


def change(made: dict, text: str | None = None, **values: object) -> None:
    picture = Image.open("drawn.png").convert("RGB")
    info = PngInfo()
    info.add_text("unclip", text if text is not None else json.dumps(made | values))
    picture.save("drawn.png", pnginfo=info)


@pytest.mark.attack
@pytest.mark.parametrize("spoil, said", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_drawn_again_is_said(spoil, said, capsys):
    assert main(["redraw", "a.png", "a cat", "-o", "drawn.png"]) == 0
    with Image.open("drawn.png") as picture:
        spoil(json.loads(picture.text["unclip"]))
    capsys.readouterr()
    assert main(["again", "drawn.png", "--model", "tiny"]) == 2
    assert re.search(said, capsys.readouterr().err) and not Path("drawn-again.png").exists()


@pytest.mark.attack
def test_a_picture_fetches_no_model_by_its_name(monkeypatch, capsys):
    assert main(["a cat", "-o", "drawn.png"]) == 0
    with Image.open("drawn.png") as picture:
        change(json.loads(picture.text["unclip"]), model="karlo")
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: pytest.fail("a model was loaded"))
    assert main(["again", "drawn.png"]) == 2
    assert "say where that is by --model" in capsys.readouterr().err
    assert main(["again", "drawn.png", "--cell", "2"]) == 2
    assert "--cell 2 is of a grid" in capsys.readouterr().err


def test_anyway_draws_with_what_is_here_and_says_so(capsys):
    assert main(["a cat", "-o", "drawn.png"]) == 0
    with Image.open("drawn.png") as picture:
        made = json.loads(picture.text["unclip"])
    change(made, version="9.9", digest="0" * 12)
    assert main(["again", "drawn.png", "--model", "tiny", "--anyway"]) == 0
    now = record_of("drawn-again.png")
    assert (now.version, now.digest) != ("9.9", "0" * 12) and now.prompt == "a cat"


def test_a_picture_of_another_name_is_given(capsys):
    assert main(["vary", "a.png", "-o", "drawn.png"]) == 0
    Path("a.png").rename("c.png")
    assert main(["again", "drawn.png", "--model", "tiny", "--image", "c.png"]) == 0
    assert Path("drawn.png").read_bytes() == Path("drawn-again.png").read_bytes()


def test_an_embedding_of_ones_own_is_not_in_the_picture(pipeline, capsys):
    embed = pipeline.embed_prompt("a cat")
    save_png(pipeline.generate("a cat", image_embed=embed), "drawn.png")
    assert main(["again", "drawn.png", "--model", "tiny"]) == 2
    assert "an embedding that somebody brought along" in capsys.readouterr().err


@pytest.mark.attack
def test_files_that_say_nothing_or_too_much(capsys):
    Image.open("a.png").convert("RGB").save("x.jpg")
    zipped = bomb(Path("a.png").read_bytes())
    Path("bomb.png").write_bytes(zipped)
    for file, said in (
        ("a.png", "does not say how it was made"),
        ("x.jpg", "is no PNG, and only those say"),
        ("bomb.png", "cannot be read|does not say"),
        ("none.png", "there is no file"),
    ):
        assert main(["info", file]) == 2
        assert re.search(said, capsys.readouterr().err)


def bomb(png: bytes) -> bytes:
    """A PNG with a compressed text that unpacks to 200 MB."""
    data = b"unclip\0\0" + zlib.compress(bytes(200 << 20), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return png[:33] + chunk + png[33:]
