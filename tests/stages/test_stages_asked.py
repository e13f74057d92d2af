"""What public models ask of a stage besides its loops: starts, inpainting, classes, texts, ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import DIM, INPUTS, TEXT, decoder, everything, glide, last, prior, randn, seeded, tokens, unit

from unclip.config import parse_config
from unclip.diffusion.noise import Noise
from unclip.nets.unet import UNetConfig
from unclip.stages import Decoder, DecoderStageConfig, LowRes, Process, Sampling, load_stage


@pytest.mark.bitwise
def test_no_text_is_nothing_but_padding():
    stage, n = glide(), 2000
    told, nothing = stage.conditions(2, **tokens(2)), stage.conditions(2)
    null = stage.null(told)
    assert not null["token_mask"].any() and not nothing["token_mask"].any()
    made = [stage.encode(one)["text"] for one in (null, nothing, told)]
    assert torch.equal(made[0], made[1]) and not torch.allclose(made[0], made[2], atol=1e-2)
    many = stage.drop({key: value[:1].expand(n, -1) for key, value in told.items()}, seeded(0))
    share = 1 - many["token_mask"].any(1).double().mean().item()
    assert abs(share - 0.5) < 4 * (0.25 / n) ** 0.5


def test_wrong_widths_and_channels_are_refused():
    with pytest.raises(ValueError, match="width 8 needs a U-Net with text_dim and text_embed_dim 8, not 5"):
        decoder(text=parse_config(type(glide().config.text), TEXT))
    with pytest.raises(ValueError, match="in_channels 7 and out_channels 6, not 3 and 6"):
        decoder(net={}, inpaint=True)


def test_the_network_is_fed_scaled_times():
    """Improved DDPM of 4000 steps feeds its network t * 1000 / T."""
    stage, seen = decoder(net={}, process=Process(timesteps=4000, time_scale=0.25)), []
    real = stage.network.forward
    stage.network.forward = lambda x, t: (seen.append(t), real(x, t))[1]
    stage.denoiser(randn(3, 3, 8, 8), torch.tensor([1, 2, 4000]))
    assert seen[0].tolist() == [0.0, 0.25, 999.75]


@pytest.mark.bitwise
def test_the_start_is_scaled():
    stage = decoder(net={}, sampling=Sampling(steps=2, sampler="ddim"))
    seen = []
    stage.run(lambda x, t: seen.append(x), (4,), Noise([0]), stage.config.sampling)
    half = stage.config.sampling.model_copy(update={"noise_scale": 0.5})
    for sampling in (stage.config.sampling, half):
        with pytest.raises(AttributeError):  # the denoiser here says nothing
            next(stage.run(lambda x, t: seen.append(x), (4,), Noise([0]), sampling))
    assert torch.equal(0.5 * seen[0], seen[1]) and torch.equal(seen[0], Noise([0])((4,)))


def test_the_last_network_takes_the_last_step_alone():
    process = Process(predicts="eps")
    stage = decoder(
        net={"out_channels": 3},
        process=process,
        last_network=True,
        sampling=Sampling(sampler="ddpm", steps=7),
    )
    calls = []
    for name in ("network", "last"):
        net = getattr(stage, name)
        net.forward = lambda x, t, name=name, real=net.forward: (
            calls.append((name, t[0].item())),
            real(x, t),
        )[1]
    last(stage.sample({}, Noise([0, 1])))
    # The levels of Karlo's scheduler (it counts them from 0).
    assert calls == [("network", t) for t in (999, 832, 666, 500, 333, 166)] + [("last", 0)]
    x, t = randn(3, 3, 8, 8), torch.tensor([5, 1, 900])
    mixed = stage.denoiser(x, t).eps
    for k, net in enumerate((stage.network, stage.last, stage.network)):
        alone = net(x[k : k + 1], (t[k : k + 1] - 1).float())
        torch.testing.assert_close(mixed[k : k + 1], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(mixed[1:2], stage.network(x[1:2], torch.zeros(1)), atol=1e-2)


@pytest.mark.parametrize("round_to_8bit", [False, True])
def test_the_smaller_picture_is_rounded_before_it_is_enlarged(round_to_8bit):
    stage = glide(8, 4, low_res={"round_to_8bit": round_to_8bit})
    exact = torch.randint(0, 256, (1, 3, 4, 4), generator=seeded(0)) / 127.5 - 1
    near = exact + (torch.rand(exact.shape, generator=seeded(1)) - 0.5) * 0.9 / 127.5
    assert torch.allclose(stage.enlarge(near), stage.enlarge(exact), atol=1e-6) == round_to_8bit


def test_bicubic_is_antialiased_as_pil_does_it():
    from PIL import Image

    stage = glide(16, 4, low_res={"interpolation": "bicubic"})
    low = randn(4, 4).clamp(-0.5, 0.5)
    made = stage.enlarge(low.expand(1, 3, 4, 4))[0, 0]
    pil = np.array(Image.fromarray(low.numpy(), mode="F").resize((16, 16), Image.Resampling.BICUBIC))
    assert torch.allclose(made, torch.from_numpy(pil), atol=1e-5)
    other = F.interpolate(low.expand(1, 3, 4, 4), scale_factor=4.0, mode="bicubic", align_corners=False)[0, 0]
    assert not torch.allclose(made, other, atol=1e-2)


@pytest.mark.bitwise
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++2m", "heun"])
@pytest.mark.parametrize("threshold", ["static", "dynamic", "none"])
def test_known_pixels_stay_with_every_sampler(sampler, threshold):
    stage = glide(inpaint=True, sampling=Sampling(sampler=sampler, threshold=threshold, steps=3))
    picture = randn(2, 3, 8, 8, seed=9).clamp(-1, 1)
    mask = (torch.rand(2, 1, 8, 8, generator=seeded(3)) < 0.5).float()
    told = stage.conditions(2, **tokens(2), image=picture, mask=mask)
    kept, steps = mask.bool().expand_as(picture), list(stage.sample(told, Noise([0, 1])))
    assert all(torch.allclose(step.x0[kept], picture[kept], atol=1e-6) for step in steps)
    made = stage.to_picture(steps[-1].x, told)
    assert torch.equal(made[kept], picture[kept]) and not torch.allclose(made, picture, atol=0.1)


@pytest.mark.bitwise
def test_a_residual_is_inpainted_as_a_picture():
    net = {"in_channels": 10, "image_size": 8}
    stage = decoder(
        net=net,
        process=Process(predicts="v"),
        inpaint=True,
        sampling=Sampling(steps=2),
        low_res=LowRes(size=4, residual_scale=0.3),
    )
    picture, mask = randn(1, 3, 8, 8, seed=9).clamp(-1, 1), torch.ones(1, 1, 8, 8)
    mask[..., :5] = 0
    told = stage.conditions(1, low_res=randn(1, 3, 4, 4).clamp(-1, 1), image=picture, mask=mask)
    made = stage.to_picture(last(stage.sample(told, Noise([0]))).x, told)
    assert torch.equal(made[..., 5:], picture[..., 5:]) and not torch.allclose(made, picture, atol=0.1)


def test_what_is_known_of_a_picture():
    stage = glide(inpaint=True)
    picture = randn(2, 3, 8, 8).clamp(-1, 1)
    known = stage.conditions(2, image=picture)["known"]
    assert torch.equal(known[:, :3], picture) and (known[:, 3] == 1).all()
    assert not stage.conditions(2)["known"].any()
    assert torch.equal(stage.null({"known": known})["known"], known)
    many = stage.drop({"known": known[:1].expand(4000, -1, -1, -1)}, seeded(0))["known"]
    mask, flat = many[:, 3:], many[:, 3].flatten(1).sum(1)
    assert torch.equal(many[:, :3], picture[:1] * mask)
    assert 0.05 < (flat == 0).double().mean() < 0.2 and (flat == 64).any()
    rows, columns = (1 - mask).amax(3)[:, 0], (1 - mask).amax(2)[:, 0]
    assert torch.equal(rows[:, :, None] * columns[:, None], 1 - mask[:, 0])  # a rectangle, of any place
    assert (rows.mean(0) > 0.3).all() and (columns.mean(0) > 0.3).all()
    with pytest.raises(ValueError, match=r"takes a picture \[N,3,8,8\].*not \[2, 3, 9, 8\]"):
        stage.conditions(2, image=torch.zeros(1, 3, 9, 8))


def test_a_model_that_always_had_a_class_asks_for_one():
    stage = decoder(net={"classes": 3}, drop_class=0.0, sampling=Sampling(steps=2))
    with pytest.raises(ValueError, match=r"knows no picture without a class \(its drop_class is 0\).*0 to 2"):
        stage.conditions(1)
    told = stage.conditions(1, classes=torch.tensor([2]))
    assert last(stage.sample(told, Noise([0]))).x.isfinite().all()
    with pytest.raises(ValueError, match="its guidance_scale must be 1"):
        stage.sample(told, Noise([0]), Sampling(steps=2, guidance_scale=2.0))
    away = stage.conditions(1, classes=torch.tensor([0]))  # another class may be moved away from
    guided = Sampling(steps=2, guidance_scale=2.0)
    assert last(stage.sample(told, Noise([0]), guided, away)).x.isfinite().all()


def test_embeddings_of_any_length():
    raw, whole = prior(unit_norm=False), prior()
    raw.load_state_dict(whole.state_dict())
    told = whole.conditions(unit(3), randn(3, 4, 5), torch.ones(3, 4, dtype=torch.bool))
    made = raw.sample(told, Noise([0, 1, 2]))
    assert (made.norm(dim=-1) - 1).abs().min() > 0.01
    assert torch.allclose(F.normalize(made, dim=-1), whole.sample(told, Noise([0, 1, 2])), atol=1e-6)


@pytest.mark.bitwise
def test_a_prior_without_a_learned_null_starts_from_a_text():
    stage = prior(null_text=False, drop_text=0.0)
    told = stage.conditions(unit(2), randn(2, 4, 5), torch.ones(2, 4, dtype=torch.bool))
    away = stage.conditions(unit(2, seed=9), randn(2, 4, 5, seed=9), torch.ones(2, 4, dtype=torch.bool))
    assert "has_text" not in told
    with pytest.raises(ValueError, match='with the conditions of the text ""'):
        stage.sample(told, Noise([0, 1]))
    one = stage.config.sampling.model_copy(update={"guidance_scale": 1.0})
    assert not torch.allclose(
        stage.sample(told, Noise([0, 1]), null=away), stage.sample(told, Noise([0, 1]), one), atol=1e-2
    )
    assert torch.equal(stage.drop(told, seeded(0))["text_embed"], told["text_embed"])
    with pytest.raises(ValueError, match="train it with drop_text 0"):
        prior(null_text=False, drop_text=0.1).drop(told, seeded(0))


@pytest.mark.bitwise
def test_clips_vector_of_a_text_is_a_condition_too():
    stage = decoder(net={**INPUTS, "text_embed_dim": DIM}, drop_text=0.4)
    told = {**everything(stage), **stage.conditions(2, text_embed=unit(2))}
    assert stage.takes_text_embed and not stage.takes_tokens
    assert not stage.null(told)["text_embed"].any() and not stage.conditions(2)["text_embed"].any()
    many = {"text_mask": torch.ones(4000, 2, dtype=torch.bool), "text_embed": unit(1).expand(4000, -1)}
    kept = stage.drop(many, seeded(0))
    assert torch.equal(kept["text_mask"].any(1), kept["text_embed"].any(1))  # one text, left out as a whole
    assert abs(kept["text_mask"].any(1).double().mean() - 0.6) < 0.04
    empty = decoder(net={**INPUTS, "text_embed_dim": DIM}, null_text="empty")
    with pytest.raises(ValueError, match="train it with drop_text 0"):
        empty.drop(many, seeded(0))


@pytest.mark.bitwise
@pytest.mark.parametrize("make", [
    lambda: glide(16, 8, inpaint=True, low_res={"round_to_8bit": True, "interpolation": "bicubic"},
                  sampling=Sampling(sampler="ddpm", steps=2, gradient="mean", noise_scale=0.9)),
    lambda: decoder(net={"out_channels": 3}, process=Process(predicts="eps", time_scale=0.5),
                    last_network=True),
    lambda: prior(null_text=False, unit_norm=False),
], ids=["glide", "last", "prior"])  # fmt: skip
def test_saved_and_loaded_and_saved_they_are_the_same_bytes(make, tmp_path):
    stage, files = make(), [tmp_path / name for name in ("once", "twice")]
    stage.save(files[0])
    loaded = load_stage(files[0])
    loaded.save(files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert loaded.config == stage.config
    assert {name.split(".")[0] for name in loaded.state_dict()} == {
        name.split(".")[0] for name in stage.state_dict()
    }


def test_a_config_from_before_means_what_it_meant():
    net = UNetConfig(
        image_size=8, channels=8, channel_mult=(1,), num_res_blocks=1, head_channels=8, out_channels=6
    ).model_dump(mode="json")
    old = {
        "kind": "decoder",
        "net": net,
        "process": {"variance": "learned", "loss": "hybrid"},
        "sampling": {"sampler": "ddim", "steps": 2},
    }
    stage = Decoder(parse_config(DecoderStageConfig, old))
    assert stage.text is None and stage.last is None and stage.denoiser.time_scale == 1
    assert stage.conditions(2) == {}
