"""A hole is filled by decoders that were never told of holes: what is known is kept, and every model can."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from pictures import apart, pixels
from PIL import Image, ImageDraw
from tiny import decoder, upsampler
from tiny_glide import mask, picture
from tiny_glide import model as glide
from tiny_karlo import karlo
from tiny_models import tiny_pipeline

import unclip
from unclip.app.command import main
from unclip.diffusion.samplers import SAMPLERS
from unclip.pipeline.canvas import canvas_of
from unclip.pipeline.pipeline import Pipeline
from unclip.pipeline.request import Wish, origin_of
from unclip.stages import Decoder, Sampling

pytestmark = pytest.mark.usefixtures("float32")
MODELS = {
    "unclip": (tiny_pipeline, "a cat"),
    "glide": (glide, "cat"),
    "glide that was trained for it": (lambda: glide(inpaint=True), "cat"),
    "karlo": (karlo, "a cat"),
    "classes": (lambda: Pipeline(decoder(net={"classes": 3}, sampling=Sampling(steps=3)), name="adm"), None),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request) -> tuple[Pipeline, str | None]:
    make, prompt = MODELS[request.param]
    return make(), prompt


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_known_is_kept_exactly_by_every_model_and_sampler(case, sampler):
    model, prompt = case
    side = model.size
    image, hole = picture(side), mask(side, (0, 0, side // 2, side))
    given = {"seed": 1, "n": 2, "sampler": sampler, "guidance_scale": 1.0, "steps": 3}
    given |= {} if model.decoder.config.inpaint else {"resamplings": 3}
    drawn = model.inpaint(image, hole, prompt, **given)
    for one in drawn:
        known, painted = (side // 2, 0, side, side), (0, 0, side // 2, side)
        assert apart(one.crop(known), image.crop(known)) == 0
        assert apart(one.crop(painted), image.crop(painted)) > 50
    assert apart(*drawn) > 3
    if sampler == "ddpm":
        alone = model.generate(prompt, image=image, mask=hole, **{**given, "n": 1})
        assert apart(alone, drawn[0]) <= 1  # as in a batch


def test_a_mask_of_one_pixel_changes_one_pixel():
    model, image = tiny_pipeline(), picture(64)
    drawn = model.inpaint(image, mask(64, (3, 5, 4, 6)), "a cat", resamplings=1)
    changed = (np.array(drawn) != np.array(image)).any(2)
    assert changed.sum() == 1 and changed[5, 3]


def test_steps_are_taken_again_by_the_decoder_alone_and_progress_knows():
    model, told, steps = tiny_pipeline(), [], []
    given = {"steps": 4, "upsampler_steps": 2, "progress": lambda *what: told.append(what)}
    given["watch"] = lambda step: steps.append(step.t)
    model.inpaint(picture(64), mask(64, (0, 0, 32, 64)), "a cat", resamplings=3, **given)
    levels = model.decoder.levels(Sampling(steps=4))[1:]
    assert told == [("decoder", k, 10) for k in range(1, 11)] + [("upsampler 64", k, 2) for k in (1, 2)]
    assert steps == [level for level in levels[:-1] for _ in range(3)] + [0]
    told.clear()
    model.inpaint(picture(64), mask(64, (0, 0, 32, 64)), "a cat", **{**given, "steps": 2})
    assert told[0] == ("decoder", 1, 11)  # ten, unless told otherwise


def test_the_shipped_model_fills_a_hole_so_that_it_goes_with_the_rest(small_icons):
    """The border of the hole is no edge: there pixels differ no more than in what the model draws freely."""
    icons, side = small_icons, small_icons.size
    heart, middle = icons.generate("a red heart", seed=1, steps=8), side // 2
    half = Image.new("L", (side, side), 0)
    ImageDraw.Draw(half).rectangle((middle, 0, side - 1, side - 1), fill=255)
    drawn = icons.inpaint(heart, half, "a red heart", steps=8, resamplings=3)
    assert apart(drawn.crop((0, 0, middle, side)), heart.crop((0, 0, middle, side))) == 0
    across = abs(np.diff(pixels(drawn).astype(float), axis=1)).mean((0, 2))
    other = pixels(icons.generate("a lemon", seed=1, steps=8))
    torn = abs(pixels(heart)[:, middle - 1] - other[:, middle]).mean()
    assert across[middle - 1] < torn / 4


def test_a_stage_that_is_told_of_the_known_part_needs_no_filling_and_any_other_does():
    """Each by itself: of a decoder that was trained for it the upsampler may know nothing."""
    base = decoder(net={"image_size": 16, "in_channels": 7}, inpaint=True)
    model = Pipeline(base, upsamplers=[upsampler()], name="two")
    wish = Wish([0], canvas=canvas_of(picture(64), mask(64, (0, 0, 32, 64))))
    assert origin_of(model, base, wish, {}) is None
    origin = origin_of(model, model.upsamplers[0], wish, {})
    assert origin.resamplings == 1 and origin.strength == 1 and origin.picture.shape == (1, 3, 64, 64)
    assert origin.known[..., 32:].all() and not origin.known[..., :32].any()


@pytest.mark.attack
@pytest.mark.parametrize("make, options, said", [
    (glide, {"resamplings": 0}, "resamplings: "),
    (glide, {"mask": mask(8)}, "mask is 8 x 8 pixels, the picture 16 x 16"),
    (glide, {"mask": mask(16, (0, 0, 0, 0))}, "mask is black all over"),
    (glide, {"mask": None}, "inpainting takes both an image and a mask"),
    (glide, {"picture": "missing.png"}, "there is no file missing.png"),
    (lambda: glide(inpaint=True), {"resamplings": 2}, "by a model which was not trained for it"),
])  # fmt: skip
def test_holes_that_cannot_be_filled(monkeypatch, make, options, said):
    monkeypatch.setattr(Decoder, "sample", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=re.escape(said)):
        make().inpaint(**{"picture": picture(), "mask": mask(), "prompt": "cat", **options})


def test_the_command_and_the_function(tmp_path, monkeypatch):
    model = tiny_pipeline()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: model)
    monkeypatch.setattr(unclip, "_loaded", lambda *where: model)
    picture(64).save("my cat.png")
    mask(64, (0, 0, 32, 64)).save("left.png")
    assert main(["inpaint", "my cat.png", "left.png", "a dog", "--resamplings", "2"]) == 0
    drawn = Image.open("my-cat-left-a-dog-inpaint.png")
    assert apart(drawn, unclip.inpaint("my cat.png", "left.png", "a dog", resamplings=2, device="cpu")) <= 1
    assert apart(drawn.crop((32, 0, 64, 64)), picture(64).crop((32, 0, 64, 64))) == 0
    assert torch.is_grad_enabled()
