"""The exact ends of the verbs by every sampler that can do them, on models as Karlo and GLIDE are."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from pictures import apart, pixels
from PIL import Image
from tiny_glide import model as glide
from tiny_glide import picture as noisy
from tiny_karlo import karlo
from tiny_models import tiny_pipeline

from unclip.diffusion.samplers import SAMPLERS
from unclip.pipeline.canvas import fitted
from unclip.pipeline.edits import FORGETFUL
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import Decoder

pytestmark = pytest.mark.usefixtures("float32")
MODELS = {"unclip": tiny_pipeline, "karlo": karlo}
KEEPING = [sampler for sampler in SAMPLERS if sampler not in FORGETFUL]  # they keep a picture's own noise


@pytest.fixture(scope="module", params=MODELS)
def whole(request) -> Pipeline:
    return MODELS[request.param]()


def without_upsamplers(whole: Pipeline) -> Pipeline:
    """They draw detail anew."""
    return Pipeline(whole.decoder, whole.prior, [], whole.clip, whole.name)


@pytest.fixture(scope="module")
def model(whole) -> Pipeline:
    return without_upsamplers(whole)


@pytest.fixture(scope="module")
def picture(model) -> Image.Image:
    """One that the model can make, so that it has a noise of its own."""
    return model.generate("a cat", seed=3, steps=20, guidance_scale=1.0, sampler="ddim")


def distance(a: Image.Image, b: Image.Image) -> float:
    return ((pixels(a) - pixels(b)) ** 2).mean() ** 0.5


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


def own(model: Pipeline, picture: Image.Image, **given) -> Image.Image:
    """What its noise and its embedding make of a picture."""
    return model.vary(picture, 1, spread=0, **given)[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_halves_composed_are_the_whole_to_the_byte(whole, sampler):
    prompts, given = ["a cat", "a car"], {"n": 2, "seed": 5, "prior_steps": 3}
    for away in ({}, {"negative_prompt": "a dog"}):  # which the prior is asked for in both halves
        of_decoder = {**given, **away, "sampler": sampler, "steps": 3}
        embed = whole.embed_prompt(prompts, **given, **away)
        drawn = whole.generate(prompts, **of_decoder)
        halves = whole.generate(prompts, image_embed=embed, **of_decoder)
        assert len(drawn) == 4 and all(map(same, drawn, halves))
    other = whole.embed_prompt("a cat", n=2, seed=6, prior_steps=3)
    assert not torch.equal(embed[:2], other)


@pytest.mark.parametrize("sampler", KEEPING)
def test_karlo_makes_a_picture_of_its_own_noise_again(sampler):
    """The nearer, the more steps; from fresh noise the same embedding draws another one."""
    model = without_upsamplers(karlo())
    given = {"sampler": sampler, "guidance_scale": 1.0}
    picture = model.generate("a cat", seed=3, steps=10, **given)
    few, many = (distance(own(model, picture, steps=steps, **given), picture) for steps in (5, 30))
    [fresh] = model.vary(picture, 1, spread=1, steps=10, **given)
    assert many < few and 2 * many < distance(fresh, picture)


@pytest.mark.parametrize("sampler", KEEPING)
def test_a_path_ends_as_its_ends_alone(model, picture, sampler):
    given = {"steps": 5, "seed": 5, "sampler": sampler}
    other = model.generate("a dog", seed=4)
    path = model.interpolate(picture, other, 3, **given)
    assert apart(path[0], own(model, picture, **given)) <= 1  # in another batch
    assert apart(path[2], own(model, other, **given)) <= 1 and not any(
        same(path[1], one) for one in path[::2]
    )
    words = model.interpolate("a cat", picture, 2, **given)
    embed = model.embed_prompt("a cat", seed=5)
    assert apart(words[0], model.generate(image_embed=embed, guidance_scale=1.0, **given)) <= 1
    assert apart(words[1], path[0]) <= 1


@pytest.mark.parametrize("sampler", KEEPING)
def test_an_edit_begins_with_the_picture(model, picture, sampler):
    given = {"steps": 5, "seed": 5, "sampler": sampler}
    path = model.edit(picture, "a cat", "a dog", 1.0, n=3, **given)
    assert same(model.edit(picture, "a cat", "a dog", 0, **given), own(model, picture, **given))
    assert apart(path[0], own(model, picture, **given)) <= 1
    assert 0 < distance(path[1], path[0]) and not same(path[1], path[2])


@pytest.mark.parametrize("sampler", KEEPING)
def test_a_picture_is_followed_back_by_the_guidance_that_draws_it(model, picture, sampler, monkeypatch):
    """Away from the same: of a decoder that has learned no missing text, from the text ""."""
    denoise, told = Decoder.denoise, []

    def seen(self: Decoder, conditions: dict, null: dict, scale: float, *more, **options):
        told.append((conditions, null, scale, options.get("guidance_interval")))
        return denoise(self, conditions, null, scale, *more, **options)

    monkeypatch.setattr(Decoder, "denoise", seen)
    own(model, picture, steps=3, sampler=sampler, guidance_scale=2.0, guidance_interval="0.2,0.8")
    back, forth = told
    for before, after in zip(back[:2], forth[:2], strict=True):
        assert before.keys() == after.keys()
        for name in before:
            torch.testing.assert_close(before[name], after[name])
    assert back[2:] == forth[2:] == (2.0, (0.2, 0.8))


VERBS: dict[str, Callable[..., object]] = {
    "generate": lambda model, picture, **given: model.generate("a cat", **given),
    "vary": lambda model, picture, **given: model.vary(picture, 1, spread=0.5, **given)[0],
    "interpolate": lambda model, picture, **given: model.interpolate(picture, "a dog", 3, **given)[1],
    "edit": lambda model, picture, **given: model.edit(picture, "a cat", "a dog", 0.5, **given),
    "redraw": lambda model, picture, **given: model.redraw(picture, "a dog", 0.8, **given),
    "inpaint": lambda model, picture, **given: model.inpaint(
        picture, Image.new("L", picture.size, "white"), "a dog", resamplings=1, **given
    ),
    "image_prompt": lambda model, picture, **given: model.generate("a cat", image_prompt=picture, **given),
}


@pytest.mark.parametrize("sampler", KEEPING)
@pytest.mark.parametrize("verb", VERBS)
def test_guidance_in_an_interval_goes_with_every_verb(model, picture, verb, sampler):
    given = {"steps": 4, "seed": 5, "sampler": sampler, "guidance_scale": 3.0}
    draw = VERBS[verb]
    everywhere = draw(model, picture, **given)
    assert same(draw(model, picture, guidance_interval=(0, 1), **given), everywhere)
    assert not same(draw(model, picture, guidance_interval=(0.3, 0.7), **given), everywhere)


def test_what_a_model_knows_of_a_verb_grows_with_the_verb(small_icons):
    """The shipped one: its CLIP sees a picture less in variations that spread, and a path leave one end for
    the other; at the decoder's size a picture comes back."""
    icons = small_icons
    apple, rocket = icons.generate(["a red apple", "a rocket"], seed=1, steps=8)

    def likeness(drawn: list[Image.Image], to: Image.Image) -> list[float]:
        embeds = icons.encode_image(torch.cat([fitted(one, icons.size) for one in [to, *drawn]]))
        return (embeds[1:] @ embeds[0]).tolist()

    given = {"steps": 15, "seed": 1}
    # With few steps a picture is not followed back to its noise well enough.
    spreads = [icons.vary(apple, 1, spread=spread, **{**given, "steps": 60}) for spread in (0, 1)]
    near, far = (sum(likeness(drawn, apple)) for drawn in spreads)
    assert near > far
    back, before = (fitted(one, icons.size) for one in (spreads[0][0], apple))
    psnr = -10 * torch.log10((back - before).square().mean() / 4)
    assert psnr > 20
    path = icons.interpolate(apple, rocket, 4, **given)
    leaving, coming = likeness(path, apple), likeness(path, rocket)
    assert sum(leaving[:2]) > sum(leaving[2:]) and sum(coming[:2]) < sum(coming[2:])


def reading() -> Pipeline:
    """A Karlo as diffusers has it, of which CLIP only reads."""
    whole = karlo()
    whole.clip.image_size = None
    return whole


@pytest.mark.attack
@pytest.mark.parametrize("make", [glide, reading])
def test_a_model_that_cannot_do_a_verb_says_so_before_it_begins(make, monkeypatch):
    monkeypatch.setattr(Decoder, "sample", lambda *_, **__: pytest.fail("work has begun"))
    model, picture = make(), noisy()
    for verb in ("vary", "interpolate", "edit"):
        with pytest.raises(ValueError, match=re.escape(f"the model {model.name} cannot {verb}: that needs")):
            VERBS[verb](model, picture)
    with pytest.raises(ValueError, match="image_prompt"):
        VERBS["image_prompt"](model, picture)
    if make is glide:
        with pytest.raises(ValueError, match="the model tiny-glide has no prior"):
            model.embed_prompt("cat")
        with pytest.raises(ValueError, match="takes no image_embed"):
            model.generate(image_embed=torch.zeros(1, 4))
        with pytest.raises(ValueError, match="takes no image_prompt"):
            model.generate(image_prompt="dog")


@pytest.mark.attack
@pytest.mark.parametrize("verb", [*list(VERBS)[1:], "upscale"])
def test_a_picture_without_pixels_is_refused(verb, monkeypatch):
    monkeypatch.setattr(Decoder, "sample", lambda *_, **__: pytest.fail("work has begun"))
    model, nothing = tiny_pipeline(), Image.new("RGB", (0, 5))
    draw = VERBS.get(verb, Pipeline.upscale)
    with pytest.raises(ValueError, match="the picture is 0 x 5 pixels"):
        draw(model, nothing)


def test_a_model_that_only_reads_mixes_texts():
    model = reading()
    parts = [("a cat", 0.5), ("a dog", 0.5)]
    mixed = model.generate(image_prompt=parts, seed=1, n=2)
    assert len(mixed) == 2 and not same(mixed[0], model.generate("a cat", seed=1))
