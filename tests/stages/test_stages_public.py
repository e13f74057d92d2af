"""What the stages of public models do: their text, guides and inpainting, and whole samplings of theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from public_loops import Spaced, cosine, guided
from tiny import TEXT, decoder, glide, last, randn, seeded, tokens

from unclip.config import ConfigError, parse_config
from unclip.diffusion.gaussian import log_variance, posterior
from unclip.diffusion.noise import Noise
from unclip.stages import Decoder, Process, Sampling

FAST27 = [
    0,
    22,
    44,
    66,
    88,
    111,
    133,
    155,
    177,
    199,
    200,
    222,
    244,
    266,
    288,
    311,
    333,
    355,
    377,
    399,
    400,
    500,
    599,
    600,
    799,
    800,
    997,
]
LINEAR = np.linspace(1e-4, 0.02, 1000)
ANCESTRAL = Sampling(sampler="ddpm", steps=10, guidance_scale=3.0)


class Same(Noise):
    """The same streams for two implementations, an image's noise at a time."""

    def image(self, size: int = 8):
        return self((3, size, size))


def denoising(stage: Decoder) -> Decoder:
    """The stage, whose network adds to what it makes the best eps for pictures of deviation 0.4.

    An untrained network alone makes pictures that are clamped nearly all over, which would hide much.
    """

    def nearly(net, args, out):
        x, t = args
        level = stage.schedule.at(t.long() + 1).like(x)
        best = level.sigma / (0.16 * level.alpha**2 + level.sigma**2) * x[:, :3]
        return 0.3 * out + F.pad(best, (0, 0, 0, 0, 0, 3))

    stage.network.register_forward_hook(nearly)
    return stage


def network(stage: Decoder):
    """The stage's networks as the public code calls theirs: tokens in, text encoded at every step."""

    def call(x, t, tokens, mask, known=None, low_res=None):
        pooled, text = stage.text(tokens, mask)
        parts = [x, *([] if known is None else [known])]
        if low_res is not None:
            parts.append(F.interpolate(low_res, x.shape[2:], mode="bilinear", align_corners=False))
        return stage.network(torch.cat(parts, 1), t.float(), text=text, text_embed=pooled)

    return call


def pair(n: int) -> tuple[dict, dict]:
    """The public code's keyword arguments for n texts, and for as many empty ones."""
    told = tokens(n)
    cond = {"tokens": told["tokens"], "mask": told["token_mask"]}
    return cond, {"tokens": torch.full((n, TEXT["length"]), 39), "mask": torch.zeros_like(cond["mask"])}


def test_glide_and_its_upsampler_draw_what_the_public_loops_draw():
    """Ten ancestral steps with guidance, 8 bits, then fast27 by DDIM from noise of 0.997."""
    base = denoising(glide(sampling=ANCESTRAL))
    up = glide(
        16,
        8,
        process=Process(schedule="linear", variance="learned", loss="hybrid"),
        low_res={"round_to_8bit": True},
        sampling=Sampling(sampler="ddim", steps="fast27", noise_scale=0.997),
    )
    up = denoising(up)
    (cond, null), noise = pair(3), Same(range(3))
    public = Spaced(cosine(), [111 * k for k in range(10)])
    small = public.ancestral(guided(network(base), cond, null, 3.0), noise.image(), noise.image)
    low_res = ((small + 1) * 127.5).round() / 127.5 - 1
    model, start = network(up), 0.997 * Same([7, 8, 9]).image(16)
    large = Spaced(LINEAR, FAST27).ddim(lambda x, t: model(x, t, **cond, low_res=low_res), start)

    told = base.conditions(3, **tokens(3))
    ours = base.to_picture(last(base.sample(told, Same(range(3)))).x, told)
    torch.testing.assert_close(ours, small, atol=1e-4, rtol=0)
    told = up.conditions(3, **tokens(3), low_res=ours)
    made = up.to_picture(last(up.sample(told, Same([7, 8, 9]))).x, told)
    torch.testing.assert_close(made, large, atol=1e-4, rtol=0)
    for picture in (small, large):
        assert (picture.abs() < 1).float().mean() > 0.5 and picture.std() > 0.1  # not all clamped
    assert (small[0] - small[2]).abs().max() > 0.1
    other = base.sample(base.conditions(3, **tokens(3, seed=7)), Same(range(3)))
    assert (last(other).x - small).abs().max() > 0.05  # the text matters


@pytest.mark.bitwise
@pytest.mark.parametrize("low", [None, 4])
def test_inpainting_draws_what_the_public_loop_draws(low):
    sampling = ANCESTRAL.model_copy(update={"guidance_scale": 5.0})
    stage = denoising(glide(low=low, inpaint=True, sampling=sampling))
    (cond, null), noise = pair(2), Same([3, 4])
    picture, mask = randn(1, 3, 8, 8, seed=9).clamp(-1, 1), torch.ones(1, 1, 8, 8)
    mask[..., 3:] = 0
    small = None if low is None else randn(2, 3, 4, 4, seed=8).clamp(-1, 1)
    more = {"known": torch.cat([picture * mask, mask], 1).expand(2, -1, -1, -1)}
    more |= {} if small is None else {"low_res": small}
    model = guided(network(stage), cond | more, null | more, 5.0)
    public = Spaced(cosine(), [111 * k for k in range(10)]).ancestral(
        model, noise.image(), noise.image, then=lambda x0: x0 * (1 - mask) + picture * mask * mask
    )
    told = stage.conditions(2, **tokens(2), image=picture, mask=mask, low_res=small)
    ours = last(stage.sample(told, Same([3, 4]))).x
    torch.testing.assert_close(ours, public, atol=1e-4, rtol=0)
    assert torch.equal(ours[..., :3], picture[..., :3].expand(2, -1, -1, -1))


def test_a_guide_shifts_the_mean_as_publicly():
    """The guide sees x_t and the original t, which its network counts from 0; its gradient is not clamped."""
    sampling = ANCESTRAL.model_copy(update={"guidance_scale": 1.0, "gradient": "mean"})
    stage = denoising(glide(sampling=sampling))
    cond, _ = pair(2)
    model, noise, seen = network(stage), Same([5, 6]), []

    def guide(x, t):
        return 3 * (x - 0.3).sin() * (1 + t.view(-1, 1, 1, 1) / 500)

    def climb(x, t, x0):
        seen.append(t[0].item())
        assert x0.abs().max() <= 1
        return guide(x, t - 1)

    public = Spaced(cosine(), [111 * k for k in range(10)]).ancestral(
        lambda x, t: model(x, t, **cond), noise.image(), noise.image, guide=guide
    )
    told = stage.conditions(2, **tokens(2))
    ours = last(stage.sample(told, Same([5, 6]), climb=climb)).x
    torch.testing.assert_close(ours, public, atol=5e-4, rtol=0)
    assert seen == [111 * k + 1 for k in range(9, -1, -1)]
    assert (ours - last(stage.sample(told, Same([5, 6]))).x).abs().max() > 0.1
    score = stage.config.sampling.model_copy(update={"gradient": "score"})
    assert (ours - last(stage.sample(told, Same([5, 6]), score, climb=climb)).x).abs().max() > 0.01


def test_the_mean_shift_is_its_formula_and_guides_add_up():
    """One step: mean + variance (objective's gradient + climb's)."""
    stage = decoder(net={}, process=Process(predicts="v"))
    sampling = Sampling(sampler="ddpm", steps=3, gradient="mean")
    first, t, s = {}, 1000, 501

    def objective(picture):
        return 2 * (picture * picture.detach().cos()).sum((1, 2, 3))

    def climb(x, t, x0):
        return x.cos()

    steps = [step for step in stage.sample({}, Noise([0, 1]), sampling, objective=objective, climb=climb)]
    first, x = steps[0], Noise([0, 1])((3, 8, 8))
    assert first.t == s
    levels = stage.schedule.at(t), stage.schedule.at(s)
    out = stage.denoise({}, {}, 1.0)(x, torch.full((2,), t))
    variance = log_variance(0.0, *levels).exp().float()
    alpha, sigma = stage.schedule.at(t).alpha, stage.schedule.at(t).sigma
    inside = (out.x0.abs() < 1).float()  # a clamped pixel's objective has no slope
    of_x0 = (alpha / (alpha**2 + sigma**2)).float() * 2 * out.x0.cos() * inside
    noise = Noise([0, 1])
    noise((3, 8, 8))
    expected = posterior(x, out.x0, *levels)[0] + variance * (of_x0 + x.cos())
    expected = expected + variance.sqrt() * noise((3, 8, 8))
    at_edge = out.x0.abs() == 1
    torch.testing.assert_close(first.x[~at_edge], expected[~at_edge], atol=1e-5, rtol=0)


@pytest.mark.bitwise
def test_a_sampler_that_has_no_mean_shift_climbs_the_score():
    stage = decoder(net={}, sampling=Sampling(sampler="ddpm", steps=4, gradient="mean"))

    def climb(x, t, x0):
        return x.cos()

    mean = stage.config.sampling.model_copy(update={"sampler": "ddim"})  # as a user's own sampler does
    score = Sampling(sampler="ddim", steps=4)
    made = [last(stage.sample({}, Noise([0]), sampling, climb=climb)).x for sampling in (mean, score)]
    assert torch.equal(*made)
    with pytest.raises(ConfigError, match=r"gradient mean is for ddpm alone, not for dpm\+\+2m"):
        parse_config(Sampling, {"gradient": "mean"})


@pytest.mark.bitwise
def test_text_is_encoded_once_a_call_and_with_a_gradient_in_training(monkeypatch):
    stage = glide(sampling=ANCESTRAL)
    calls, real = [], stage.text.forward
    monkeypatch.setattr(stage.text, "forward", lambda *args: (calls.append(1), real(*args))[1])
    told = stage.conditions(2, **tokens(2))
    last(stage.sample(told, Noise([0, 1])))
    assert len(calls) == 2  # the text, and what guidance starts from
    encoded = stage.encode(told)
    assert encoded.keys() == {"text", "text_embed"} and stage.encode(encoded).keys() == encoded.keys()
    x, t = randn(2, 3, 8, 8), torch.tensor([10, 900])
    assert torch.equal(stage.denoiser(x, t, **told).eps, stage.denoiser(x, t, **encoded).eps)
    stage.requires_grad_(True)
    stage(x.clamp(-1, 1), t, randn(2, 3, 8, 8, seed=1), stage.drop(told, seeded(0)))["loss"].sum().backward()
    assert all(p.grad is not None for p in stage.parameters())
    assert stage.text.token.weight.grad.abs().max() > 0 and stage.text.padding.grad.abs().max() > 0
