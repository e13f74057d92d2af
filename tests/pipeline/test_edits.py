"""What a model does with a picture: the ends of every path are exact, and what it cannot do is said first."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import apart
from PIL import Image
from tiny_models import tiny_pipeline

import unclip
from unclip.app.command import main
from unclip.pipeline import edits
from unclip.pipeline.canvas import end_of, fitted
from unclip.pipeline.edits import slerp
from unclip.pipeline.pipeline import Pipeline
from unclip.pipeline.request import Wish
from unclip.stages import Decoder, DecoderStageConfig

pytestmark = pytest.mark.usefixtures("float32")
SAMPLERS = ["ddim", "dpm++2m", "heun"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """Without upsamplers, which draw detail anew: a picture of its own can come back whole."""
    whole = tiny_pipeline()
    return Pipeline(whole.decoder, whole.prior, [], whole.clip, "tiny")


@pytest.fixture(scope="module")
def picture(pipeline) -> Image.Image:
    """One that the model can make, so that it has a noise of its own."""
    return pipeline.generate("a cat", seed=3, steps=20, guidance_scale=1.0, sampler="ddim")


def distance(a: Image.Image, b: Image.Image) -> float:
    """The root of the mean square of what two pictures differ by, of a range from -1 to 1."""
    return (np.subtract(a, b, dtype=float) ** 2).mean() ** 0.5 / 127.5


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.tobytes() == b.tobytes()


def test_the_great_circle():
    a, b = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 2, 0], [1, 0, 0], [-1, 0, 0]])
    half = slerp(a, b, 0.5)
    root = 0.5**0.5
    torch.testing.assert_close(half, torch.tensor([[root, 2 * root, 0], [1, 0, 0], [0, 0, 0]]))
    assert torch.equal(slerp(a, b, 0), a.expand(3, 3)) and torch.equal(slerp(a, b, 1), b)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 3, 16, 16, generator=g)
    assert all(abs(slerp(x, y, s).std() - 1) < 0.05 for s in (0.1, 0.5, 0.9))  # noise stays noise


def test_embeddings_alone_are_drawn_without_words():
    pipeline = tiny_pipeline()
    embed = pipeline.embed_prompt(["a cat", "a dog"], n=2, seed=5)
    assert embed.shape == (4, len(pipeline.decoder.embed_mean))
    alone = pipeline.generate(image_embed=embed[:1], seed=5)
    assert isinstance(alone, Image.Image) and not same(alone, pipeline.generate("a cat", seed=5))
    assert len(pipeline.generate(image_embed=embed, n=3)) == 12


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_noise_of_a_picture_makes_it_again(pipeline, sampler):
    """At the decoder's size, from the inversion of DDIM; the more steps the nearer."""
    given = Wish([7], options=unclip.options.Options(steps=40, sampler=sampler, guidance_scale=1.0))
    g = torch.Generator().manual_seed(0)
    embed = torch.nn.functional.normalize(torch.randn(1, len(pipeline.decoder.embed_mean), generator=g))
    given = replace(given, embed=embed)
    before = pipeline.decode(given)
    error = []
    for steps in (10, 80):
        wish = replace(given, options=given.options.model_copy(update={"steps": steps}))
        start = edits.inverted(pipeline, wish, before)
        error.append((pipeline.decode(replace(wish, start=start)) - before).square().mean().sqrt().item())
    assert error[1] < error[0] and error[1] < 0.05 < before.std() / 4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_variations_go_from_the_picture_to_its_embedding_alone(pipeline, picture, sampler):
    embed = pipeline.encode_image(fitted(picture, pipeline.size))
    given = {"steps": 8, "sampler": sampler, "seed": 5}
    far = pipeline.vary(picture, 2, spread=1, **given)
    drawn = pipeline.generate(image_embed=embed, n=2, guidance_scale=1.0, **given)
    assert all(same(a, b) for a, b in zip(far, drawn, strict=True)) and not same(*far)


def test_variations_leave_the_picture_as_they_spread(pipeline, picture):
    def mean(spread: float) -> float:
        variations = pipeline.vary(picture, 2, spread=spread, steps=24, seed=5)
        return sum(distance(one, picture) ** 2 for one in variations) / 2

    near, between, far = map(mean, (0, 0.5, 1))
    assert near < 0.02 and 10 * near < between and 1.5 * between < far


def test_an_edit_goes_from_the_picture_to_the_words(pipeline, picture):
    given = {"steps": 20, "seed": 5}
    path = pipeline.edit(picture, "a cat", "a dog", 1.0, n=3, **given)
    assert apart(pipeline.edit(picture, "a cat", "a dog", 0.5, **given), path[1]) <= 1  # in another batch
    away = [distance(one, picture) for one in path]
    assert away[0] + 0.05 < away[1] < away[2]
    back = pipeline.edit(picture, "a dog", "a cat", 0.5, **given)
    assert not same(back, path[1])


def test_an_edit_turns_the_embedding_towards_the_difference_of_texts(pipeline, picture, monkeypatch):
    """unCLIP, section 3.3; where embeddings have a length, that of the picture's is kept."""
    wishes = []
    monkeypatch.setattr(Pipeline, "drawn", lambda self, wish, _: wishes.append(wish) or [picture])
    texts = pipeline.encode_text(["a cat", "a dog"]).clip.embed
    difference = torch.nn.functional.normalize(texts[1:] - texts[:1])
    torch.testing.assert_close(edits.text_difference(pipeline, "a cat", "a dog"), difference)
    embed = pipeline.encode_image(fitted(picture, pipeline.size))
    monkeypatch.setattr(Pipeline, "encode_image", lambda *_: 3 * embed)
    pipeline.edit(picture, "a cat", "a dog", 0.5, steps=2)
    cosines = [torch.cosine_similarity(wishes[0].embed, one) for one in (embed, difference)]
    torch.testing.assert_close(*cosines)  # half the way
    assert cosines[0] > torch.cosine_similarity(embed, difference)
    torch.testing.assert_close(wishes[0].embed.norm(), torch.tensor(3.0))


def test_the_shipped_model_edits(small_icons):
    """What CLIP sees of the target grows with the strength; at 0 it is the picture's reconstruction."""
    icons = small_icons
    red = icons.generate("a red heart", seed=1, steps=8)
    given = {"steps": 10, "seed": 1}
    path = icons.edit(red, "a red heart", "a blue heart", 0.5, n=3, **given)
    assert apart(path[0], icons.vary(red, 1, spread=0, **given)[0]) <= 1
    likeness = [
        icons.encode_image(fitted(one, icons.size)) @ edits.text_difference(icons, "red", "blue")[0]
        for one in path
    ]
    assert likeness[0] < likeness[1] < likeness[2]


def test_a_file_is_told_from_a_text(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    assert end_of("a cat") == "a cat" and end_of("a cat v1.2") == "a cat v1.2"
    assert same(end_of(str(tmp_path / "a.png")), picture) and same(end_of(tmp_path / "a.png"), picture)
    with pytest.raises(ValueError, match="there is no file missing.png"):
        end_of("missing.png")
    with pytest.raises(ValueError, match="there is no file a cat"):
        end_of("a cat", text=False)


def test_pictures_of_any_size_and_mode(pipeline):
    wide = Image.new("LA", (90, 40), (0, 0))  # transparent: white
    pixels = fitted(wide, pipeline.size)
    assert pixels.shape == (1, 3, 16, 16) and (pixels == 1).all()


@pytest.mark.attack
@pytest.mark.parametrize("options, said", [
    ({"spread": 1.5}, "spread must be a number from 0 to 1, not 1.5"),
    ({"spread": -0.1}, "spread must be a number from 0 to 1"),
    ({"spread": float("nan")}, "spread must be a number from 0 to 1"),
    ({"spread": True}, "spread must be a number from 0 to 1, not True"),
    ({"n": 0}, "n must be at least 1"),
    ({"n": 10**9}, "more than one call draws"),
    ({"sampler": "ddpm"}, "which ddpm forgets"),
    ({"negative_prompt": "a dog"}, "negative_prompt is of words"),
    ({"clip_guidance_scale": 2.0}, "clip_guidance_scale is of words"),
    ({"steps": 0}, "steps must be"),
    ({"picture": "missing.png"}, "there is no file missing.png"),
    ({"picture": 7}, "a picture is one of PIL"),
])  # fmt: skip
def test_what_cannot_be_varied(pipeline, picture, monkeypatch, options, said):
    monkeypatch.setattr(Decoder, "sample", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=re.escape(said)):
        pipeline.vary(**{"picture": picture, **options})


@pytest.mark.attack
@pytest.mark.parametrize("options, said", [
    ({"strength": 1.5}, "strength must be a number from 0 to 1, not 1.5"),
    ({"strength": "0.5"}, "strength must be a number from 0 to 1, not '0.5'"),
    ({"n": 0}, "n must be at least 1"),
    ({"source": ""}, "the prompt is empty"),
    ({"target": None}, "a prompt must be text, not None"),
    ({"target": "A  CAT"}, "to CLIP 'a cat' and 'A  CAT' are the same text"),
    ({"sampler": "ddpm"}, "which ddpm forgets"),
    ({"picture": "missing.png"}, "there is no file missing.png"),
])  # fmt: skip
def test_what_cannot_be_edited(pipeline, picture, monkeypatch, options, said):
    monkeypatch.setattr(Decoder, "sample", lambda *_, **__: pytest.fail("work has begun"))
    monkeypatch.setattr(edits, "inverted", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=re.escape(said)):
        pipeline.edit(**{"picture": picture, "source": "a cat", "target": "a dog", **options})


@pytest.mark.attack
@pytest.mark.parametrize("options, said", [
    ({"b": "missing.png"}, "there is no file missing.png"),
    ({"b": 7}, "a picture is one of PIL"),
    ({"b": " "}, "the prompt is empty"),
    ({"n": 1}, "n must be at least 2"),
    ({"mask": "missing.png"}, "to interpolate takes no mask"),
    ({"image_prompt": "a dog"}, "to interpolate takes no image_prompt"),
    ({"stairs": 5}, "to interpolate takes no stairs"),
])  # fmt: skip
def test_between_what_there_is_no_way(pipeline, picture, monkeypatch, options, said):
    monkeypatch.setattr(edits, "inverted", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=re.escape(said)):
        pipeline.interpolate(**{"a": picture, "b": "a dog", **options})


@pytest.mark.attack
@pytest.mark.parametrize("embed, said", [
    (torch.zeros(2, 3), "image_embed must be a tensor [N,"),
    (torch.zeros(3), "image_embed must be a tensor [N,"),
    ([1.0], "image_embed must be a tensor [N,"),
    ("nan", "infinite or none"),
    ("two", "1 pictures need as many rows of image_embed, not 2"),
])  # fmt: skip
def test_embeddings_that_are_none(pipeline, embed, said):
    width = len(pipeline.decoder.embed_mean)
    known = {"nan": torch.full((1, width), float("nan")), "two": torch.zeros(2, width)}
    embed = known[embed] if isinstance(embed, str) else embed
    with pytest.raises(ValueError, match=re.escape(said)):
        pipeline.generate("a cat", image_embed=embed)


def test_a_model_that_sees_no_pictures_says_so(picture):
    net = {"image_size": 8, "channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "head_channels": 8}
    nothing = Pipeline(Decoder(DecoderStageConfig(net=net, process={"predicts": "v"})), name="nothing")
    for work in (
        lambda: nothing.vary(picture),
        lambda: nothing.interpolate(picture, picture),
        lambda: nothing.edit(picture, "a cat", "a dog"),
    ):
        with pytest.raises(ValueError, match="the model nothing cannot .*needs a CLIP that sees pictures"):
            work()
    with pytest.raises(ValueError, match="the model nothing has no prior"):
        nothing.embed_prompt("a cat")
    with pytest.raises(ValueError, match="takes no image_embed"):
        nothing.generate(image_embed=torch.zeros(1, 4))


def test_the_verbs_of_the_command(pipeline, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: pipeline)
    picture.save("my cat.png")
    assert main(["vary", "my cat.png", "-n", "5", "--steps", "4"]) == 0
    assert Image.open("my-cat-vary.png").size == (4 * 16 + 3 * 2, 2 * 16 + 2)
    assert main(["interpolate", "my cat.png", "a dog", "-n", "5", "--steps", "4"]) == 0
    sheet = Image.open("my-cat-a-dog-interpolate.png")
    assert sheet.size == (5 * 16 + 4 * 2, 16)  # a way is one row, however long
    last = pipeline.interpolate("my cat.png", "a dog", 5, steps=4)[4]
    assert apart(sheet.crop((72, 0, 88, 16)), last) <= 1
    assert main(["edit", "my cat.png", "a cat", "a v1.2 dog", "--strength", "0.5", "--steps", "4"]) == 0
    edited = Image.open("my-cat-a-cat-a-v1-2-dog-edit.png")
    assert apart(edited, pipeline.edit("my cat.png", "a cat", "a v1.2 dog", 0.5, steps=4)) <= 1
    assert main(["draw", "vary", "--steps", "2"]) == 0 and Image.open("vary.png").size == (16, 16)
    capsys.readouterr()
    assert main(["interpolate", "my cat.png", "missing.png"]) == 2
    assert "unclip interpolate: there is no file missing.png" in capsys.readouterr().err


def test_the_functions_of_the_package(pipeline, picture, monkeypatch):
    monkeypatch.setattr(unclip, "_loaded", lambda *where: pipeline)
    [a] = unclip.vary(picture, 1, spread=0, steps=2, device="cpu")
    assert same(a, pipeline.vary(picture, 1, spread=0, steps=2)[0])
    assert len(unclip.interpolate("a cat", "a dog", 3, steps=2)) == 3
    assert same(unclip.edit(picture, "a cat", "a dog", 0, steps=2), a)
    assert same(unclip.generate("a cat"), pipeline.generate("a cat"))
