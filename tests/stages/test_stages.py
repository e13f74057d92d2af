"""Stages: what a network is told, what it is not told in training, and what comes out of it."""

from __future__ import annotations

import pytest
import torch
from tiny import DIM, decoder, everything, last, prior, randn, seeded, unit, upsampler

from unclip.app.command import parser
from unclip.config import parse_config
from unclip.diffusion.analytic import x0_variance
from unclip.diffusion.losses import loss_terms
from unclip.diffusion.noise import Noise
from unclip.diffusion.samplers import SAMPLERS, Step
from unclip.diffusion.schedule import SCHEDULES
from unclip.options import Options
from unclip.pipeline import Pipeline
from unclip.stages import Process, Sampling, load_stage


@pytest.mark.parametrize("make", [prior, decoder])
def test_whitening_and_back(make):
    stage, embed = make(), unit(50)
    assert torch.allclose(stage.unwhiten(stage.whiten(embed)), embed, atol=1e-6)
    stage.set_statistics(embed.mean(0), embed.std(0))
    white = stage.whiten(embed)
    assert torch.allclose(white.mean(0), torch.zeros(DIM), atol=1e-5)
    assert torch.allclose(white.std(0), torch.ones(DIM), atol=1e-5)
    assert torch.allclose(stage.unwhiten(3 * white).norm(dim=-1), torch.ones(50))


def test_a_coordinate_that_never_varies_is_no_division_by_zero():
    stage, embed = prior(), unit(9)
    embed[:, 0] = 0.5
    stage.set_statistics(embed.mean(0), embed.std(0))
    assert stage.whiten(embed).isfinite().all()


def test_conditions_say_what_is_given():
    stage = decoder()
    given, nothing = everything(stage), stage.conditions(2)
    assert torch.equal(given["image_embed"], stage.whiten(unit(2))) and given["has_image"].all()
    assert not nothing["has_image"].any() and not nothing["text_mask"].any()
    assert (nothing["classes"] == -1).all()
    assert decoder(net={}).conditions(2) == {}
    with pytest.raises(ValueError, match="low-resolution"):
        upsampler().conditions(2)
    with pytest.raises(ValueError, match="takes 7 text tokens, not 8"):
        prior().conditions(unit(1), randn(1, 8, 5), torch.ones(1, 8, dtype=torch.bool))


def test_null_is_the_same_as_giving_nothing():
    stage, x, t = decoder(), randn(2, 3, 8, 8), torch.tensor([10, 900])
    null, nothing = stage.null(everything(stage)), stage.conditions(2)
    made = stage.denoiser(x, t, **null).x0
    assert torch.allclose(made, stage.denoiser(x, t, **nothing).x0, atol=1e-5)
    assert not torch.allclose(made, stage.denoiser(x, t, **everything(stage)).x0, atol=1e-2)


@pytest.mark.parametrize("rates", [(0.0, 0.3, 1.0), (1.0, 0.0, 0.3), (0.3, 1.0, 0.0), (0.2, 0.5, 0.7)])
def test_each_condition_is_dropped_on_its_own_chance(rates):
    n = 20_000
    stage = decoder(**dict(zip(("drop_image", "drop_text", "drop_class"), rates, strict=True)))
    given = {
        "image_embed": torch.zeros(n, DIM),
        "has_image": torch.ones(n, dtype=torch.bool),
        "text": torch.zeros(n, 1, 5),
        "text_mask": torch.ones(n, 1, dtype=torch.bool),
        "classes": torch.ones(n, dtype=torch.int64),
    }
    kept = stage.drop(given, seeded(0))
    dropped = torch.stack([~kept["has_image"], ~kept["text_mask"][:, 0], kept["classes"] == -1]).double()
    for share, rate in zip(dropped.mean(1).tolist(), rates, strict=True):
        assert abs(share - rate) <= 4 * (rate * (1 - rate) / n) ** 0.5
    centred = dropped - dropped.mean(1, keepdim=True)
    assert (centred @ centred.T / n).fill_diagonal_(0).abs().max() < 4 * 0.25 / n**0.5
    again, other = stage.drop(given, seeded(0)), stage.drop(given, seeded(1))
    assert all(torch.equal(kept[key], again[key]) for key in given)
    assert not all(torch.equal(kept[key], other[key]) for key in given)
    assert given["has_image"].all() and given["text_mask"].all()  # not in place


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_prior_is_trained_without_text_now_and_then(rate):
    n, stage = 20_000, prior(drop_text=rate)
    told = stage.conditions(torch.zeros(n, DIM), torch.zeros(n, 1, 5), torch.ones(n, 1, dtype=torch.bool))
    share = 1 - stage.drop(told, seeded(0))["has_text"].double().mean().item()
    assert abs(share - rate) <= 4 * (rate * (1 - rate) / n) ** 0.5


def test_the_prior_is_trained_on_the_embedding_alone_and_on_its_neighbours():
    n = 5_000
    stage = prior(drop_text=0.0, drop_tokens=0.4, text_noise=0.5)
    told = stage.conditions(unit(n), torch.zeros(n, 2, 5), torch.ones(n, 2, dtype=torch.bool))
    kept = stage.drop(told, seeded(0))
    assert kept["has_text"].all() and torch.equal(kept["text"], told["text"])
    assert torch.equal(kept["text_mask"][:, 0], kept["text_mask"][:, 1])
    assert abs(1 - kept["text_mask"][:, 0].double().mean() - 0.4) < 4 * (0.24 / n) ** 0.5
    assert torch.allclose(kept["text_embed"].norm(dim=-1), torch.ones(n))
    tangent = (kept["text_embed"] * told["text_embed"]).sum(-1).acos().tan()
    assert 0.4 < tangent.median() < 0.55  # the noise is about half as long as the embedding
    still = prior(drop_text=0.0).drop(told, seeded(0))
    assert all(torch.equal(still[key], told[key]) for key in told)
    assert all(torch.equal(value, stage.drop(told, seeded(0))[key]) for key, value in kept.items())


def test_predictions_are_kept_within_the_data():
    """The network alone leaves the range; guided and clamped it does not, and eps agrees with x0."""
    stage, t = decoder(), torch.tensor([200, 600])
    told, x = everything(stage), 3 * randn(2, 3, 8, 8)
    assert stage.denoiser(x, t, **told).x0.abs().max() > 1.2
    bright = stage.denoise(told, stage.null(told), 3.0, objective=lambda p: 1e3 * p.sum((1, 2, 3)))
    out = bright(x, t)
    assert out.x0.abs().max() <= 1 and (out.x0 == 1).any()
    level = stage.schedule.at(t).like(x)
    assert torch.allclose(level.alpha * out.x0 + level.sigma * out.eps, x, atol=1e-5)
    assert stage.denoise(told, stage.null(told), 3.0)(x, t).x0.abs().max() == 1
    stage = prior(clamp=0.1)
    told = stage.conditions(unit(2), randn(2, 4, 5), torch.ones(2, 4, dtype=torch.bool))
    assert stage.denoiser(x[:, 0, 0, :DIM], t, **told).x0.abs().max() > 0.1
    assert stage.denoise(told, stage.null(told), 2.0)(x[:, 0, 0, :DIM], t).x0.abs().max() <= 0.1


def test_noise_on_the_embedding_is_for_training_only():
    stage = decoder(embed_noise=0.5)
    given = everything(stage)
    noise = (stage.drop(given, seeded(0))["image_embed"] - given["image_embed"]) / 0.5
    assert 0.5 < noise.std() < 1.7
    quiet = decoder(embed_noise=0.0)
    assert torch.equal(quiet.drop(given, seeded(0))["image_embed"], given["image_embed"])


@pytest.mark.parametrize("change, said", [
    ({"in_channels": 6}, "in_channels 3 and out_channels 6, not 6 and 6"),
    ({"out_channels": 3}, "not 3 and 3"),
])  # fmt: skip
def test_wrong_channels_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        decoder(net=change)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_objective_is_climbed_with_every_sampler(sampler):
    stage = decoder(sampling=Sampling(sampler=sampler, steps=6, guidance_scale=1.5))
    told = everything(stage)

    def redness(picture):
        return (picture[:, 0] - picture[:, 1:].mean(1)).mean((1, 2))

    def drawn(objective):
        return redness(stage.to_picture(last(stage.sample(told, Noise([0, 1]), objective=objective)).x, told))

    plain, red, less = drawn(None), drawn(lambda p: 50 * redness(p)), drawn(lambda p: -50 * redness(p))
    assert (red > plain + 0.05).all() and (less < plain - 0.05).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_the_same_alone_and_in_a_batch(sampler):
    stage = decoder(sampling=Sampling(sampler=sampler, steps=3, guidance_scale=2.0))
    told = everything(stage)
    both = last(stage.sample(told, Noise([7, 8]))).x
    alone = last(stage.sample({key: value[1:] for key, value in told.items()}, Noise([8]))).x
    assert torch.allclose(both[1:], alone, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=0.1)


@pytest.mark.bitwise
def test_prior_makes_unit_embeddings_that_heed_text_and_null():
    stage = prior()
    told = stage.conditions(unit(3), randn(3, 4, 5), torch.ones(3, 4, dtype=torch.bool))
    made = stage.sample(told, Noise([0, 1, 2]))
    assert made.shape == (3, DIM) and torch.allclose(made.norm(dim=-1), torch.ones(3))
    assert torch.equal(made, stage.sample(told, Noise([0, 1, 2])))
    away = stage.conditions(unit(3, seed=9), randn(3, 4, 5, seed=9), torch.ones(3, 4, dtype=torch.bool))
    for other in (stage.sample(away, Noise([0, 1, 2])), stage.sample(told, Noise([0, 1, 2]), null=away)):
        assert not torch.allclose(made, other, atol=1e-2)


@pytest.mark.parametrize("steps, visited", [
    (5, [1000, 750, 501, 251, 1, 0]),
    ("5", [1000, 750, 501, 251, 1, 0]),
    ("ddim4", [751, 501, 251, 1, 0]),
    ("1,2", [1000, 501, 1, 0]),
])  # fmt: skip
def test_the_steps_of_a_recipe_are_those_taken(steps, visited):
    stage = decoder(net={}, sampling=Sampling(steps=steps, sampler="ddim"))
    assert stage.levels(stage.config.sampling) == visited
    assert [step.t for step in stage.sample({}, Noise([0]))] == visited[1:]


@pytest.mark.bitwise
def test_what_sampling_says_is_done():
    stage = decoder()
    told = everything(stage)

    def drawn(**options):
        sampling = Sampling(**{"sampler": "ddim", "steps": 4, "guidance_scale": 3.0, **options})
        return last(stage.sample(told, Noise([0, 1]), sampling)).x

    plain = drawn()
    assert plain.abs().max() == 1 and torch.equal(plain, drawn(threshold="static", eta=0.0))
    assert drawn(threshold="none").abs().max() > 1
    for change in ({"threshold": "dynamic"}, {"guidance_rescale": 0.7}, {"eta": 1.0}, {"sampler": "heun"}):
        made = drawn(**change)
        assert made.abs().max() <= 1 and not torch.allclose(made, plain, atol=1e-2)


def test_an_upsamplers_range_is_that_of_its_pictures():
    """Not that of the scaled residual that it diffuses."""
    stage = upsampler(residual_scale=0.1)
    told, x, t = stage.conditions(1, low_res=randn(1, 3, 16, 16).clamp(-1, 1)), 30 * randn(1, 3, 64, 64), 500
    for threshold in ("static", "dynamic", "none"):
        denoise = stage.denoise(told, stage.null(told), 1.0, threshold=threshold)
        x0 = denoise(x, torch.tensor([t])).x0
        picture = x0 * 0.1 + told["base"]
        assert (picture.abs().max() <= 1 + 1e-6) == (threshold != "none")


def test_the_prior_is_thresholded_too():
    stage, x, t = prior(clamp=0.1), randn(2, DIM), torch.tensor([200, 600])
    told = stage.conditions(unit(2), randn(2, 4, 5), torch.ones(2, 4, dtype=torch.bool))
    for threshold in ("static", "dynamic"):
        assert stage.denoise(told, stage.null(told), 2.0, 0.5, threshold)(x, t).x0.abs().max() <= 0.1 + 1e-6
    assert stage.denoise(told, stage.null(told), 2.0, threshold="none")(x, t).x0.abs().max() > 0.1
    free = last_of(stage, told, threshold="none", guidance_rescale=0.5)
    assert not torch.allclose(free, last_of(stage, told, threshold="static"), atol=1e-3)


def last_of(stage, told, **options):
    return stage.sample(told, Noise([0, 1]), Sampling(steps=3, guidance_scale=2.0, **options))


@pytest.mark.bitwise
def test_an_analytic_variance_travels_with_a_stage(tmp_path):
    stage = decoder(net={}, process=Process(predicts="v"))
    pictures = [(randn(4, 3, 8, 8).clamp(-1, 1), {})]
    levels = stage.levels(Sampling(steps=3))
    table = x0_variance(stage.denoiser, stage.schedule, pictures, levels, seeded(0))
    sampling = Sampling(sampler="ddpm", steps=3, x0_variance=table)
    stage.config = stage.config.model_copy(update={"sampling": sampling})
    stage.save(tmp_path / "stage.safetensors")
    loaded = load_stage(tmp_path / "stage.safetensors")
    assert loaded.config.sampling == sampling
    made = last(loaded.sample({}, Noise([0]))).x
    assert torch.equal(made, last(stage.sample({}, Noise([0]))).x)
    assert not torch.equal(made, last(stage.sample({}, Noise([0]), Sampling(sampler="ddpm", steps=3))).x)


@pytest.mark.bitwise
@pytest.mark.parametrize("values", [
    {"schedule": "flow", "predicts": "v", "weighting": "min_snr"},
    {"predicts": "v", "variance": "learned", "loss": "hybrid", "weighting": "p2"},
    {"predicts": "x0", "loss": "auxiliary", "auxiliary_weight": 0.5},
    {"predicts": "eps", "variance": "learned", "loss": "rescaled"},
])  # fmt: skip
def test_a_stage_is_trained_as_its_process_says(values):
    stage, t = decoder(net={}, process=Process(**values)), torch.tensor([9, 800])
    x0, noise = randn(2, 3, 8, 8).clamp(-1, 1), randn(2, 3, 8, 8, seed=1)
    options = {name: values[name] for name in ("weighting", "auxiliary_weight") if name in values}
    expected = loss_terms(stage.denoiser, x0, t, noise, {}, values.get("loss", "simple"), **options)
    made = stage(x0, t, noise, {})
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in made)
    assert last(stage.sample({}, Noise([0]), Sampling(steps=3))).x.isfinite().all()


def test_a_new_sampler_and_a_new_schedule_are_one_entry_each(monkeypatch):
    """Recipes, options and the command line know them; nothing else of the library is touched."""

    def towards_the_data(denoise, schedule, x, levels, noise):
        for t in levels[:-1]:
            prediction = denoise(x, torch.full((len(x),), t))
            x = prediction.x0
            yield Step(t, x, prediction.x0)

    for what in (
        lambda: Sampling(sampler="mine"),
        lambda: Options(sampler="mine"),
        lambda: Process(schedule="straight"),
    ):
        with pytest.raises(ValueError, match="unknown (sampler 'mine'; known: ddpm, |schedule 'straight'; )"):
            what()
    monkeypatch.setitem(SAMPLERS, "mine", towards_the_data)
    monkeypatch.setitem(SCHEDULES, "straight", SCHEDULES["flow"])
    stage = decoder(
        net={},
        process=Process(predicts="v", schedule="straight"),
        sampling=parse_config(Sampling, {"sampler": "mine", "steps": 3}, source="here"),
    )
    pipeline = Pipeline(stage, name="tiny")
    *_, step = stage.sample({}, Noise([1]))
    picture = pipeline.generate(sampler="mine", seed=0)
    assert step.x.shape == (1, 3, 8, 8) and picture.size == (8, 8)
    assert parser().parse_args(["--sampler", "mine"]).sampler == "mine"
    assert (stage.schedule.alpha == SCHEDULES["flow"](1000)[0]).all()
