"""Ways of guidance beside its scale: each goes with every sampler, and with holes; bad ones are refused."""

from __future__ import annotations

import pytest
from pictures import apart
from PIL import Image
from tiny_models import tiny_pipeline, weaker_decoder

from unclip.diffusion.samplers import SAMPLERS

pytestmark = pytest.mark.usefixtures("float32")
KINDS = {
    "apg": {"apg": (0.0, 2.0, -0.5)},
    "autoguidance": {"autoguidance_scale": 3.0},
    "cutouts": {"clip_guidance_scale": 40.0, "cutouts": 3},
}
GIVEN = {"guidance_scale": 6.0, "steps": 4, "upsampler_steps": 1, "autoguidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline().autoguide_with(weaker_decoder())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_goes_with_every_sampler_and_in_an_interval(pipeline, kind, sampler):
    given = {**GIVEN, "sampler": sampler}
    plain, drawn = (pipeline.generate("a cat", **{**given, **more}) for more in ({}, KINDS[kind]))
    assert apart(plain, drawn) > 0
    inner = pipeline.generate("a cat", guidance_interval=(0.3, 0.7), **{**given, **KINDS[kind]})
    assert apart(inner, drawn) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_depends_on_no_other_of_its_batch(pipeline, kind):
    together = pipeline.generate(["a cat", "a dog"], n=2, seed=5, **{**GIVEN, **KINDS[kind]})
    alone = pipeline.generate(["a cat", "a dog"], n=2, seed=5, batch_size=1, **{**GIVEN, **KINDS[kind]})
    assert all(apart(a, b) <= 1 for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_holes_are_filled_with_each_kind(pipeline, kind, sampler):
    picture = pipeline.generate("a dog", upsampler_steps=1)
    mask = Image.new("L", picture.size)
    mask.paste(255, (16, 16, 48, 48))
    given = {**GIVEN, "resamplings": 2, "sampler": sampler}
    plain, drawn = (
        pipeline.inpaint(picture, mask, "a cat", **{**given, **more}) for more in ({}, KINDS[kind])
    )
    assert apart(plain, drawn) > 0
    for box in ((0, 0, 64, 16), (0, 16, 16, 64)):
        assert drawn.crop(box).tobytes() == picture.crop(box).tobytes()


def test_what_changes_nothing_is_plain_guidance_to_the_bit(pipeline):
    plain = pipeline.generate("a cat", **GIVEN)
    assert pipeline.generate("a cat", apg="1,1e9,0", **GIVEN).tobytes() == plain.tobytes()
