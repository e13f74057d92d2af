"""A picture that is drawn over: from itself to what the prompt says, by every sampler and kind of model."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from pictures import apart, pixels
from PIL import Image
from tiny import decoder, randn, seeded
from tiny import upsampler as tiny_upsampler
from tiny_glide import model as glide
from tiny_karlo import karlo
from tiny_models import tiny_pipeline

import unclip
from unclip.app.command import main
from unclip.data.batches import shrink
from unclip.data.images import to_pil
from unclip.diffusion.gaussian import diffuse
from unclip.diffusion.noise import Noise
from unclip.diffusion.samplers import SAMPLERS
from unclip.pipeline.pipeline import Pipeline
from unclip.pipeline.request import Wish, origin_of
from unclip.stages import Decoder, Origin, Sampling
from unclip.stages.origin import with_detail

pytestmark = pytest.mark.usefixtures("float32")
MODELS = {
    "unclip": (tiny_pipeline, "a cat"),
    "glide": (glide, "cat"),
    "karlo": (karlo, "a cat"),
    "classes": (lambda: Pipeline(decoder(net={"classes": 3}, sampling=Sampling(steps=3)), name="adm"), None),
}


def drawing(size: int) -> Image.Image:
    return to_pil(torch.rand(3, size, size, generator=seeded(0)) * 2 - 1)


@pytest.fixture(scope="module", params=MODELS)
def case(request) -> tuple[Pipeline, str | None, Image.Image]:
    make, prompt = MODELS[request.param]
    model = make()
    return model, prompt, drawing(model.size)


def distance(a: Image.Image, b: Image.Image) -> float:
    return ((pixels(a) - pixels(b)) ** 2).mean() ** 0.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_the_picture_to_what_would_be_drawn_without_it(case, sampler):
    model, prompt, picture = case
    given = {"seed": 5, "sampler": sampler, "steps": 6, "guidance_scale": 1.0}
    assert apart(model.redraw(picture, prompt, 0, **given), picture) == 0
    drawn = model.redraw(picture, prompt, 1, n=2, **given)
    wanted = model.generate(prompt, n=2, **given)
    assert [one.tobytes() for one in drawn] == [one.tobytes() for one in wanted]
    away = [distance(model.redraw(picture, prompt, s, **given), picture) for s in (0.02, 0.4)]
    assert away[0] < 12 and away[0] < away[1] / 2


def test_several_pictures_have_noises_of_their_own(case):
    model, prompt, picture = case
    first, second = model.redraw(picture, prompt, 0.6, n=2, seed=1, steps=4)
    assert apart(first, second) > 3 and apart(first, model.redraw(picture, prompt, 0.6, seed=1, steps=4)) <= 1
    alone = model.redraw(picture, prompt, 0, n=2)
    assert len(alone) == 2 and alone[0] is not alone[1]
    if prompt is not None:
        assert len(model.redraw(picture, [prompt, "dog"], 0.6, n=2, steps=2, upsampler_steps=1)) == 4


@pytest.mark.parametrize("strength, levels", [
    (0.5, [500, 251, 1, 0]), (0.25, [250, 1, 0]), (1e-9, [1, 0]), (0.9999, [1000, 750, 501, 251, 1, 0]),
    (1.0, [1000, 750, 501, 251, 1, 0]),
])  # fmt: skip
def test_drawing_begins_at_the_level_that_is_asked_for(strength, levels):
    stage, x0 = decoder(net={}), randn(1, 3, 8, 8)
    sampling, origin = Sampling(steps=5, sampler="ddim", noise_scale=0.9), Origin(x0, strength)
    assert stage.levels(sampling, origin) == levels and stage.count(sampling, origin) == len(levels) - 1
    starts = []

    def denoise(x, t):
        starts.append(x)
        return stage.denoiser(x, t)

    next(stage.run(denoise, (3, 8, 8), Noise([0]), sampling, origin=origin))
    noise = 0.9 * Noise([0])((3, 8, 8))
    level = stage.schedule.at(levels[0])
    torch.testing.assert_close(starts[0], noise if strength == 1 else diffuse(x0, noise, level))


def test_an_upsampler_begins_with_the_pictures_detail_where_what_was_drawn_agrees():
    stage = tiny_upsampler(residual_scale=0.5)
    model = Pipeline(decoder(net={"image_size": 16}), upsamplers=[stage], name="two")
    picture = 0.3 * randn(1, 3, 64, 64).clamp(-1, 1)
    wish, own = Wish([0], sketch=(picture, 0.5)), shrink(picture, 16)
    other = own.clone()
    other[..., :8] = own[..., :8] - 2.0  # the left half is another picture
    told = stage.conditions(2, low_res=torch.cat([own, other]))
    origin = origin_of(model, stage, wish, told)
    assert origin.strength == 0.5 and origin.known is None
    torch.testing.assert_close(origin.picture[:1], picture)
    torch.testing.assert_close(origin.picture[1:, ..., 40:], picture[..., 40:])
    torch.testing.assert_close(origin.picture[1:, ..., :28], told["base"][1:, ..., :28].clamp(-1, 1))
    base = origin_of(model, model.decoder, wish, {})
    assert torch.equal(base.picture, own)
    assert origin_of(model, stage, replace(wish, sketch=None), told) is None


def test_detail_fades_as_pictures_part():
    base, detail = torch.zeros(1, 3, 8, 8), 0.25 * torch.ones(1, 3, 8, 8)
    for away, share in ((0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (1.0, 0.0), (1.5, 0.0)):
        torch.testing.assert_close(with_detail(base, base + away + detail, base + away, 2), share * detail)


def test_detail_is_left_out_around_a_place_that_is_another_too():
    """As far as a pixel of the smaller picture reaches: an edge that is gone is drawn nowhere."""
    base, detail = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.25)
    coarse = base.clone()
    coarse[:, 1, 8, 8] = 1.0  # in one channel
    made = with_detail(base, coarse + detail, coarse, 2)
    wanted = detail.clone()
    wanted[..., 6:11, 6:11] = 0
    torch.testing.assert_close(made, wanted)


def test_the_shipped_model_redraws(small_icons):
    icons = small_icons
    red = icons.generate("a red apple", seed=1, steps=8)
    given = {"seed": 2, "steps": 8}
    away = [distance(icons.redraw(red, "a yellow lemon", s, **given), red) for s in (0.1, 0.8)]
    assert away[0] < away[1] / 2
    assert apart(icons.redraw(red, "a lemon", 1, **given), icons.generate("a lemon", **given)) == 0


@pytest.mark.attack
@pytest.mark.parametrize("options, said", [
    ({"strength": -0.1}, "strength must be a number from 0 to 1, not -0.1"),
    ({"strength": None}, "strength must be a number from 0 to 1, not None"),
    ({"prompt": None}, "a prompt must be text, not None"),
    ({"prompt": " "}, "the prompt is empty"),
    ({"n": 0}, "n must be at least 1"),
    ({"picture": "missing.png"}, "there is no file missing.png"),
    ({"resamplings": 3}, "resamplings are of a picture that is inpainted"),
])  # fmt: skip
def test_what_cannot_be_redrawn(monkeypatch, options, said):
    monkeypatch.setattr(Decoder, "sample", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=re.escape(said)):
        tiny_pipeline().redraw(**{"picture": drawing(8), "prompt": "a cat", **options})


def test_the_command_and_the_function(tmp_path, monkeypatch):
    model = tiny_pipeline()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: model)
    monkeypatch.setattr(unclip, "_loaded", lambda *where: model)
    drawing(64).save("my cat.png")
    assert main(["redraw", "my cat.png", "a dog", "--strength", "0.5", "--steps", "4"]) == 0
    drawn = Image.open("my-cat-a-dog-redraw.png")
    assert apart(drawn, unclip.redraw("my cat.png", "a dog", 0.5, steps=4, device="cpu")) <= 1
