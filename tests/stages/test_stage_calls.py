"""What a stage does with all that it is asked: guidance of any strength, guides, fields of sampling."""

from __future__ import annotations

import pytest
import torch
from tiny import DIM, decoder, everything, glide, last, prior, randn, seeded, text, tokens, unit, upsampler

from unclip.diffusion.noise import Noise
from unclip.diffusion.samplers import SAMPLERS
from unclip.diffusion.schedule import step_list
from unclip.stages import Process, Sampling
from unclip.stages import stage as stages
from unclip.stages.stage import Stage

T = torch.tensor([300, 700])


def of_text(seed: int = 4) -> dict:
    told = text(2)
    return {"text_embed": unit(2, seed), "text": told["text"] + seed, "text_mask": told["text_mask"]}


def told_of(stage: Stage) -> dict[str, torch.Tensor]:
    """What the stage can be told about two pictures."""
    if stage.config.kind == "prior":
        return stage.conditions(**of_text())
    return stage.conditions(2, **tokens(2)) if stage.takes_tokens else everything(stage)


@pytest.mark.parametrize("make", [prior, decoder, glide])
@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0, 1.5, 4.0])
def test_guidance_of_any_strength_lies_on_the_line_between(make, scale):
    """Below 1 too: some way from nothing to the condition, and at 0 nothing is left of it."""
    stage = make()
    told, x = told_of(stage), randn(2, DIM) if make is prior else randn(2, 3, 8, 8)
    encode = getattr(stage, "encode", dict)
    with torch.no_grad():
        cond, null = (stage.denoiser(x, T, **encode(some)) for some in (told, stage.null(told)))
        found = stage.denoise(told, stage.null(told), scale, threshold="none")(x, T)
    assert (cond.x0 - null.x0).abs().max() > 1e-3
    for name in ("x0", "eps"):
        wanted = torch.lerp(getattr(null, name), getattr(cond, name), scale)
        torch.testing.assert_close(getattr(found, name), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [prior, decoder, glide])
@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0, 4.0])
def test_sampling_is_guided_as_strongly_as_it_says(make, scale, monkeypatch):
    """And prior and decoder begin where they are told, or else from nothing."""
    stage, asked = make(), []
    real = type(stage).denoise
    monkeypatch.setattr(
        type(stage),
        "denoise",
        lambda self, conditions, null, strength, *args, **more: (
            asked.append((conditions, null, strength)),
            real(self, conditions, null, strength, *args, **more),
        )[1],
    )
    told, other = told_of(stage), stage.null(told_of(stage))
    other = {**other, **{key: value.flip(0) for key, value in other.items() if value.dtype == torch.float32}}
    sampling = Sampling(steps=1, guidance_scale=scale)
    for null in (None, other):
        made = stage.sample(told, Noise([0, 1]), sampling, null)
        last(made) if make is not prior else made
    (first, nothing, one), (_, given, two) = asked
    assert first is told and given is other and (one, two) == (scale, scale)
    nothing_at_all = told if make is prior and scale == 1 else stage.null(told)
    assert all(torch.equal(nothing[key], nothing_at_all[key]) for key in told)


FIELDS = {
    "guidance_scale": 3.0,
    "guidance_rescale": 0.5,
    "threshold": "dynamic",
    "guidance_interval": (0.1, 0.9),
    "apg": (0.5, 3.0, -0.5),
}


@pytest.mark.parametrize(
    "sampler, gradient", [("ddpm", "score"), ("ddpm", "mean"), ("ddim", "score"), ("ddim", "mean")]
)
def test_guides_change_the_score_or_the_mean_and_never_both(monkeypatch, sampler, gradient):
    stage, asked = decoder(), {}
    monkeypatch.setattr(
        stage,
        "denoise",
        lambda conditions, null, guidance_scale, objective=None, *, climb=None, **more: (
            asked.update(more, guidance_scale=guidance_scale, objective=objective, climb=climb)
            or (lambda x, t: stage.denoiser(x, t, **conditions))
        ),
    )
    monkeypatch.setattr(
        stage,
        "run",
        lambda denoise, shape, noise, sampling, shift=None: asked.update(
            shape=shape, sampling=sampling, shift=shift
        ),
    )
    told = everything(stage)
    # As a stage that changes ddpm's mean is asked for another sampler.
    sampling = Sampling(sampler="ddpm", gradient=gradient, steps=2, **FIELDS).model_copy(
        update={"sampler": sampler}
    )

    def objective(picture):
        return 5 * picture.flatten(1).sum(1)

    def climb(x, t, x0):
        return torch.full_like(x, 7.0)

    weaker = (lambda x, t: None, 2.5)
    stage.sample(told, Noise([0, 1]), sampling, objective=objective, climb=climb, weaker=weaker)
    shift = asked.pop("shift")
    of_mean = (sampler, gradient) == ("ddpm", "mean")
    guides = {"objective": objective, "climb": climb}
    assert asked == {
        **FIELDS,
        **(dict.fromkeys(guides) if of_mean else guides),
        "weaker": weaker,
        "shape": (3, 8, 8),
        "sampling": sampling,
    }
    assert (shift is not None) == of_mean
    if of_mean:
        x, x0 = randn(2, 3, 8, 8), 0.1 * randn(2, 3, 8, 8, seed=1)
        level = stage.schedule.at(T).like(x)
        pushed = 5 * level.alpha / (level.alpha**2 + level.sigma**2) + 7
        torch.testing.assert_close(shift(x, T, x0), pushed.expand_as(x))
        stage.sample(told, Noise([0, 1]), sampling, climb=climb)
        assert (asked["shift"](x, T, x0) == 7).all()
        stage.sample(told, Noise([0, 1]), sampling)
        assert asked["shift"] is None


def test_a_prior_passes_its_sampling_on(monkeypatch):
    stage, asked = prior(), {}
    monkeypatch.setattr(
        stage,
        "denoise",
        lambda conditions, null, guidance_scale, **more: (
            asked.update(more, guidance_scale=guidance_scale)
            or (lambda x, t: stage.denoiser(x, t, **conditions))
        ),
    )
    stage.sample(stage.conditions(**of_text()), Noise([0, 1]), Sampling(steps=1, **FIELDS))
    assert asked == FIELDS


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_gets_what_is_its_own(monkeypatch, sampler):
    """eta, the variance and the shift; a start as strong as asked for; and the levels of the steps."""
    stage, asked = decoder(net={}, process=Process(predicts="x0", timesteps=50)), {}

    def sample(denoise, schedule, x, steps, noise, **more):
        asked.update(more, denoise=denoise, schedule=schedule, x=x, steps=steps, noise=noise)
        return iter([])

    monkeypatch.setitem(stages.SAMPLERS, sampler, sample)
    own = {"ddim": {"eta": 0.5}, "ddpm": {"x0_variance": {10: 0.1}}}.get(sampler, {})
    noise = Noise([0, 1])
    list(
        stage.run(
            "denoise", (3, 8, 8), noise, Sampling(sampler=sampler, steps=5, noise_scale=0.5, **own), "shift"
        )
    )
    wanted = {**own, **({"shift": "shift"} if sampler == "ddpm" else {})}
    assert torch.equal(asked.pop("x"), 0.5 * Noise([0, 1])((3, 8, 8)))
    assert asked == {
        **wanted,
        "denoise": "denoise",
        "schedule": stage.schedule,
        "noise": noise,
        "steps": step_list(5, 50),
    }
    assert stage.schedule.timesteps == 50


def test_an_upsampler_draws_pictures_as_large_as_what_it_starts_from(monkeypatch):
    stage, asked = upsampler(64, 16), []
    monkeypatch.setattr(stage, "run", lambda denoise, shape, *_: asked.append(shape))
    for size in (16, 8):  # a crop passes too
        stage.sample(stage.conditions(1, low_res=randn(1, 3, size, size)), Noise([0]))
    assert asked == [(3, 64, 64), (3, 32, 32)]


@pytest.mark.parametrize(
    "takes, prompt",
    [
        ({}, False),
        ({"image_embed_dim": DIM}, False),
        ({"text_dim": 5, "context_channels": 8}, True),
        ({"text_embed_dim": 5}, True),
        ({"classes": 3}, False),
    ],
)
def test_a_decoder_says_what_it_takes(takes, prompt):
    stage = decoder(net=takes)
    assert stage.takes_prompt == prompt and stage.takes_class == ("classes" in takes)
    assert stage.takes_text == ("text_dim" in takes) and stage.takes_image == ("image_embed_dim" in takes)
    assert stage.takes_text_embed == ("text_embed_dim" in takes) and not stage.takes_tokens
    assert glide().takes_prompt and glide().takes_tokens
    assert not glide().takes_text and not glide().takes_text_embed


def test_a_model_without_a_picture_of_no_class_may_be_guided_from_another_class():
    stage = decoder(net={"classes": 3}, drop_class=0.0)
    told, away = (stage.conditions(2, classes=torch.tensor(classes)) for classes in ([0, 1], [2, 2]))
    assert stage.denoise(told, away, 2.0)(randn(2, 3, 8, 8), T).x0.isfinite().all()
    with pytest.raises(ValueError, match="guidance_scale must be 1"):
        stage.denoise(told, stage.null(told), 2.0)
    decoder(net={"classes": 3}).denoise(told, stage.null(told), 2.0)


@pytest.mark.parametrize(
    "off, config",
    [
        (prior, {"drop_text": 0.0}),
        (prior, {"drop_text": 0.0, "drop_tokens": 0.0, "text_noise": 0.0}),
        (decoder, {"drop_image": 0.0, "drop_text": 0.0, "drop_class": 0.0}),
    ],
)
def test_what_is_left_out_and_blurred_takes_from_the_random_stream_in_one_order(off, config):
    """One number a picture for each kind of condition, and none for what is switched off."""
    stage, told = off(**config), told_of(off())
    source, other = seeded(3), seeded(3)
    dropped = stage.drop(told, source)
    assert all(torch.equal(dropped[key], told[key]) for key in told)
    torch.rand(2 * (1 if off is prior else 3), generator=other)
    assert torch.equal(source.get_state(), other.get_state())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_drawing_keeps_nothing_for_a_gradient(sampler):
    """Though the weights could have one, as in training."""
    made = glide(sampling=Sampling(sampler=sampler, steps=2, guidance_scale=2.0)).requires_grad_()
    told = made.conditions(2, **tokens(2))
    assert not any(step.x.requires_grad or step.x0.requires_grad for step in made.sample(told, Noise([0, 1])))
    embedder = prior().requires_grad_()
    assert not embedder.sample(embedder.conditions(**of_text()), Noise([0, 1])).requires_grad
