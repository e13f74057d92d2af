"""A weaker decoder beside a pipeline's own: what it changes, what it must share, where it lies."""

from __future__ import annotations

import pytest
import torch
from pictures import apart
from tiny_models import tiny_clip, tiny_pipeline, weaker_decoder

from unclip import load
from unclip.checkpoint import CheckpointError
from unclip.pipeline.pipeline import Pipeline
from unclip.plan import plan
from unclip.stages import Sampling

pytestmark = pytest.mark.usefixtures("float32")
GIVEN = {"steps": 4, "upsampler_steps": 1}


@pytest.fixture(scope="module")
def alone() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def led() -> Pipeline:
    return tiny_pipeline().autoguide_with(weaker_decoder())


def test_a_scale_of_1_and_a_decoder_that_is_the_same_change_nothing(alone, led):
    plain = alone.generate("a cat", **GIVEN)
    assert led.generate("a cat", autoguidance_scale=1, **GIVEN).tobytes() == plain.tobytes()
    assert apart(led.generate("a cat", **GIVEN), plain) > 0  # 2 unless told otherwise
    itself = tiny_pipeline()
    itself.autoguide_with(tiny_pipeline().decoder)
    unguided = {"guidance_scale": 1.0, **GIVEN}
    same = itself.generate("a cat", autoguidance_scale=5, **unguided)
    assert apart(same, alone.generate("a cat", **unguided)) <= 1


def test_the_default_is_the_decoders(led, monkeypatch):
    two, three = (led.generate("a cat", autoguidance_scale=scale, **GIVEN) for scale in (2, 3))
    assert led.generate("a cat", **GIVEN).tobytes() == two.tobytes()
    config = led.decoder.config
    mine = config.sampling.model_copy(update={"autoguidance_scale": 3.0})
    monkeypatch.setattr(led.decoder, "config", config.model_copy(update={"sampling": mine}))
    assert led.generate("a cat", **GIVEN).tobytes() == three.tobytes() != two.tobytes()
    assert Sampling().autoguidance_scale == 2


@pytest.mark.parametrize("offload", [False, True])
def test_it_is_saved_loaded_and_counted_with_the_model(led, tmp_path, offload):
    led.save(tmp_path / "model")
    again = load(tmp_path / "model", "cpu", offload=offload)
    pairs = zip(led.weaker.named_parameters(), again.weaker.named_parameters(), strict=True)
    for (name, weight), (_, other) in pairs:
        assert torch.equal(weight, other), name
    assert apart(again.generate("a cat", **GIVEN), led.generate("a cat", **GIVEN)) <= 1
    stages = {row.stage: row.parameters for row in plan(tmp_path / "model").rows}
    assert stages["weaker"] == sum(p.numel() for p in led.weaker.parameters()) < stages["decoder"]


def test_verbs_that_give_a_picture_back_are_not_led_unless_asked(alone, led):
    picture = alone.generate("a cat", steps=20, guidance_scale=1.0, sampler="ddim", upsampler_steps=1)
    back, same = (one.vary(picture, 1, spread=0, upsampler_steps=1)[0] for one in (alone, led))
    assert back.tobytes() == same.tobytes()
    away = led.vary(picture, 1, spread=0, upsampler_steps=1, autoguidance_scale=1.5)[0]
    assert apart(away, same) > 0


def test_an_interval_is_of_this_guidance_too(led):
    whole = led.generate("a cat", guidance_scale=1, **GIVEN)
    part = led.generate("a cat", guidance_scale=1, guidance_interval=(0.3, 0.7), **GIVEN)
    assert apart(whole, part) > 0
    for off in ({"autoguidance_scale": 1, "guidance_interval": (0.3, 0.7)}, {"apg": (0, 2, 0)}):
        with pytest.raises(ValueError, match="is of the decoder's guidance, and there is no guidance"):
            led.generate("a cat", guidance_scale=1, **off)


def other_clip():
    stage = weaker_decoder()
    stage.facts["clip"] = f"another {tiny_clip(3).identity}"
    return stage


def larger():
    return tiny_pipeline().upsamplers[0]


def of_text():
    """Told of CLIP's text, which the other's own decoder is not."""
    return tiny_pipeline().decoder


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: weaker_decoder(schedule="linear"), "its schedule is linear, the decoder's cosine"),
        (lambda: weaker_decoder(timesteps=100), "its timesteps is 100, the decoder's 1000"),
        (lambda: weaker_decoder(shift=0.5), "its shift is 0.5, the decoder's 1.0"),
        (larger, "its image_size is 64, the decoder's 16"),
        (other_clip, "was trained with CLIP another"),
    ],
)
def test_what_does_not_fit_is_refused(alone, make, said):
    with pytest.raises(CheckpointError, match=said):
        alone.autoguide_with(make())
    assert alone.weaker is None


def test_one_that_is_told_of_more_is_refused(alone):
    whole = tiny_pipeline()
    wordless = Pipeline(weaker_decoder(), whole.prior, [], whole.clip, "wordless")
    with pytest.raises(CheckpointError, match="it is told of Text, the decoder is not"):
        wordless.autoguide_with(of_text())


def test_a_scale_without_a_weaker_one_is_refused(alone):
    with pytest.raises(ValueError, match="there is none; Pipeline.autoguide_with takes one"):
        alone.generate("a cat", autoguidance_scale=2)
    with pytest.raises(ValueError, match="autoguidance_scale"):
        alone.upscale(alone.generate("a cat", **GIVEN), autoguidance_scale=2)
