"""Bits per dimension: the public code's terms, a second implementation, and an analytic answer."""

from __future__ import annotations

import json
import math
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from places import HELDOUT
from public_process import CASES, ROUNDING, close, load
from shards import encoded
from tiny_models import tiny_pipeline

from inference import likelihood
from inference.measure import likelihood as measured
from unclip.data.reading import read_shards
from unclip.data.writing import ShardWriter
from unclip.diffusion.denoiser import Denoiser, Prediction
from unclip.diffusion.guidance import clamp_x0
from unclip.diffusion.likelihood import bits_per_dim, prior_term
from unclip.diffusion.noise import Noise
from unclip.diffusion.schedule import evenly_spaced, make_schedule
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import Process, load_stage


def whole(schedule) -> list[int]:
    return list(range(schedule.timesteps, -1, -1))


@pytest.mark.parametrize("name", CASES)
def test_the_terms_are_those_of_the_public_code(name):
    """Of every picture the term at its own t, when each step sees the case's noise and its output."""
    case = load(name)
    denoise = clamp_x0(case.denoiser, case.schedule)
    x0, noise = case.inputs["x_start"], case.inputs["noise"]
    found = bits_per_dim(denoise, case.schedule, x0, case.steps, lambda shape: noise)
    column = [case.steps.index(t) for t in case.t.tolist()]
    close(found["terms"][range(len(x0)), column], case.outputs["vlb_bpd"], ROUNDING)
    close(found["prior"], case.outputs["prior_bpd"], ROUNDING)
    close(found["total"], found["prior"] + found["terms"].sum(1))


def reference(x0, noises, betas, network, frac):
    """Ho et al. 2020, eqs. 5 to 13 and Nichol & Dhariwal 2021, eq. 15, index by index, in nats."""
    bar = np.cumprod(1 - betas)
    below = np.append(1.0, bar[:-1])
    small = betas * (1 - below) / (1 - bar)
    small[0] = small[1]
    variance = np.exp(frac * np.log(betas) + (1 - frac) * np.log(small))
    total = 0.5 * (bar[-1] * x0**2 + (1 - bar[-1]) - np.log(1 - bar[-1]) - 1)
    for i, noise in zip(reversed(range(len(betas))), noises, strict=True):
        x = np.sqrt(bar[i]) * x0 + np.sqrt(1 - bar[i]) * noise
        guess = (x - np.sqrt(1 - bar[i]) * network(x, i)) / np.sqrt(bar[i])
        of_x0 = np.sqrt(below[i]) * betas[i] / (1 - bar[i])
        of_x = np.sqrt(1 - betas[i]) * (1 - below[i]) / (1 - bar[i])
        if i:
            away = of_x0 * (x0 - guess)
            total += 0.5 * (np.log(variance[i] / small[i]) - 1 + (small[i] + away**2) / variance[i])
        else:
            upper, lower = (
                tanh_cdf((x0 - of_x0 * guess - of_x * x + side / 255) / np.sqrt(variance[0]))
                for side in (1, -1)
            )
            upper, lower = np.where(x0 > 0.999, 1, upper), np.where(x0 < -0.999, 0, lower)
            total += -np.log(np.maximum(upper - lower, 1e-12))
    return total.mean((1, 2, 3)) / np.log(2)


def tanh_cdf(z):
    return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def test_it_is_the_sum_of_the_papers_equations():
    betas = np.linspace(0.002, 0.4, 50)  # the linear schedule of T = 50
    schedule = make_schedule("linear", 50)
    x0 = torch.randint(0, 256, (3, 3, 4, 4), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    x0 = x0.double()
    noises = list(torch.randn(50, *x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))

    def network(x, i):
        return 0.9 * np.sqrt(i / 50) * x + 0.01 * i

    def denoise(x, t):
        eps = torch.from_numpy(network(x.numpy(), t[0].item() - 1))
        return Prediction.from_eps(x, eps, schedule.at(t), torch.full_like(x, 0.3))

    given = iter(noises)
    found = bits_per_dim(denoise, schedule, x0, whole(schedule), lambda shape: next(given))
    expected = reference(x0.numpy(), [noise.numpy() for noise in noises], betas, network, 0.3)
    torch.testing.assert_close(found["total"], torch.from_numpy(expected), rtol=1e-9, atol=0)


def normal_denoise(schedule):
    """E[x0 | x_t] = alpha x_t and the true variance, beta, where the data are N(0, 1)."""

    def denoise(x, t):
        return Prediction.from_x0(x, schedule.at(t).like(x).alpha * x, schedule.at(t), torch.ones_like(x))

    return denoise


@pytest.mark.parametrize("name, steps", [("cosine", 30), ("linear", 30), ("cosine", 8)])
def test_the_exact_denoiser_of_a_gaussian_attains_its_likelihood(name, steps):
    """Then p(x_t | x0) is q(x_t | x0), and the bound is -log2 N(x0; 0, 1) and a bin's width, whatever
    x0 is (but for the outermost bins, which are wider); a divergence is log2(sigma_t / sigma_s)."""
    schedule = make_schedule(name, 30)
    chain, generator = evenly_spaced(30, steps), torch.Generator().manual_seed(0)
    x0 = torch.randint(1, 255, (32, 3, 32, 32), generator=generator).double() / 127.5 - 1
    found = bits_per_dim(normal_denoise(schedule), schedule, x0, chain, Noise(range(32)))
    expected = (0.5 * math.log(2 * math.pi) + 0.5 * x0.square().mean()) / math.log(2) + math.log2(127.5)
    assert found["total"].mean() == pytest.approx(expected.item(), abs=0.01)  # of 7.6 bits
    x0 = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    terms = bits_per_dim(normal_denoise(schedule), schedule, x0, chain, Noise(range(32)))["terms"].mean(0)
    for (t, s), term in zip(list(pairwise(chain))[:-1], terms[:-1], strict=True):
        assert term == pytest.approx((schedule.sigma[t] / schedule.sigma[s]).log2().item(), rel=0.02)


def test_the_priors_term():
    """KL(N(alpha x0, sigma^2) || N(0, 1)), against torch's."""
    x0 = torch.rand(2, 3, 4, 4, dtype=torch.float64) * 2 - 1
    level = make_schedule("linear", 100).at(40)
    q = torch.distributions.Normal(level.alpha * x0, level.sigma)
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros_like(x0), 1.0))
    torch.testing.assert_close(prior_term(x0, level), kl.mean((1, 2, 3)) / math.log(2))


def test_a_picture_costs_the_same_in_any_batch():
    schedule = make_schedule("cosine", 20)
    denoiser = Denoiser(lambda x, t: 0.5 * x, schedule)
    x0 = torch.randint(0, 256, (3, 3, 4, 4)) / 127.5 - 1
    together = bits_per_dim(denoiser, schedule, x0, whole(schedule), Noise([4, 5, 6]))
    alone = bits_per_dim(denoiser, schedule, x0[1:2], whole(schedule), Noise([5]))
    assert together["terms"].shape == (3, 20)
    for key, value in alone.items():
        torch.testing.assert_close(value[0], together[key][1])


@pytest.mark.parametrize(
    "steps, words",
    [
        ([10, 5], "last step is to 0, the data; these end at 5"),
        ([5, 10, 0], "must descend"),
        ([11, 0], "must be in 10..0"),
    ],
)
def test_chains_that_bound_nothing(steps, words):
    schedule = make_schedule("linear", 10)
    with pytest.raises(ValueError, match=words):
        bits_per_dim(Denoiser(lambda x, t: x, schedule), schedule, torch.zeros(1, 3, 2, 2), steps, Noise([0]))


# The program

ICONS = str(HELDOUT)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command; returns its exit code, what it printed, and the report that it wrote."""

    def command(*words: object) -> tuple[int, str, dict]:
        file = tmp_path / "bits.json"
        code = likelihood.main(["--json", str(file), "--overwrite", "--device", "cpu", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out if code == 0 else err, json.loads(file.read_text()) if file.exists() else {}

    return command


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """An unconditional decoder of 8 pixels and 12 steps."""
    stage = tiny.decoder(net={}, process=Process(timesteps=12, variance="learned", loss="hybrid"))
    stage.save(tmp_path / "run" / "decoder.safetensors")
    return tmp_path / "run" / "decoder.safetensors"


def test_the_command(checkpoint, run):
    code, said, report = run(checkpoint, ICONS, "--batch-size", 8)
    assert code == 0 and said == likelihood.table(report) + "\n"
    assert said.count("| ") and "19 pictures of 8 pixels; 12 of 12 steps; standard error" in said
    assert (report["pictures"], report["stage"], report["given"]) == (19, "decoder", [])
    assert [term["t"] for term in report["terms"]] == list(range(12, 0, -1))
    assert [term["s"] for term in report["terms"]] == list(range(11, -1, -1))
    total = report["prior"] + sum(term["bits"] for term in report["terms"])
    *parts, bound = (float(line.split("|")[2]) for line in said.splitlines()[2:9])
    assert [bound, sum(parts), total] == pytest.approx([report["bits_per_dim"]] * 3, abs=5e-4)


def test_the_command_measures_the_bound_of_8_bit_pictures(checkpoint, run):
    """The mean over cells of 8 x 8 pixels, rounded to 8 bits, on white."""
    _, _, report = run(checkpoint, ICONS, "--limit", 3, "--seed", 4)
    stage, x0 = load_stage(checkpoint), []
    for sample in islice(read_shards([ICONS], shuffle=10_000, seed=likelihood.fold(4)), 3):
        icon = sample["image"]
        white = Image.alpha_composite(Image.new("RGBA", icon.size, "white"), icon).convert("RGB")
        cells = np.asarray(white).astype(float).reshape(8, 8, 8, 8, 3).mean((1, 3)).round()
        x0.append(torch.from_numpy(cells).permute(2, 0, 1) / 127.5 - 1)
    noise = Noise([likelihood.fold(4, k) for k in range(3)])
    denoise = clamp_x0(stage.denoiser, stage.schedule)
    bits = bits_per_dim(denoise, stage.schedule, torch.stack(x0).float(), range(12, -1, -1), noise)
    assert report["bits_per_dim"] == pytest.approx(bits["total"].mean().item(), rel=1e-4)
    assert report["standard_error"] == pytest.approx(bits["total"].std().item() / 3**0.5, rel=1e-3)


def test_batches_do_not_matter_and_a_folder_will_do(checkpoint, run, tmp_path):
    (tmp_path / "shards").mkdir()
    for name in ("heldout-0.tar", "train-0.tar"):
        (tmp_path / "shards" / name).write_bytes(Path(ICONS).read_bytes())
    whole = run(checkpoint.parent, tmp_path / "shards", "--steps", 4)[2]
    parts = run(checkpoint, ICONS, ICONS, "--steps", 4, "--limit", 19, "--batch-size", 5)[2]
    assert whole["pictures"] == 19 and whole["steps"] == 4
    assert whole["bits_per_dim"] != parts["bits_per_dim"]  # two shards, shuffled: other pictures
    again = run(checkpoint, ICONS, "--steps", 4, "--batch-size", 5)[2]
    assert again["bits_per_dim"] == pytest.approx(whole["bits_per_dim"], rel=1e-5)


def test_a_model_of_text_and_embeddings_is_given_them(tiny_model, run, monkeypatch):
    """Its CLIP sees the whole picture; the caption is an icon's."""
    told = {}
    real = measured.conditions_of

    def conditions_of(stage, clip, batch, low_res, tokenizer):
        told.update(caption=batch.caption, shape=batch.image.shape, made=real(stage, clip, batch, low_res))
        return told["made"]

    monkeypatch.setattr(measured, "conditions_of", conditions_of)
    code, said, report = run(tiny_model, ICONS, "--limit", 2, "--steps", 2)
    assert code == 0 and "given their text and image embedding; 2 of 1000 steps" in said
    assert told["shape"] == (2, 3, 64, 64) and all(", " in caption for caption in told["caption"])
    assert told["made"]["has_image"].all() and told["made"]["text_mask"].any(1).all()
    assert report["given"] == ["text", "image embedding"]


def labelled(folder: Path, classes: list[object]) -> str:
    """A shard of flat pictures of 8 pixels with those classes; None = none."""
    with ShardWriter(folder, "labelled") as writer:
        for number, label in enumerate(classes):
            image = encoded(Image.new("RGB", (8, 8), (40 * number, 0, 0)))
            record = json.dumps({} if label is None else {"class": label}).encode()
            writer.write(f"p{number}", {"png": image, "txt": b"a", "json": record})
    return str(writer.paths[0])


def test_a_model_of_classes_is_given_them(tmp_path, run):
    stage = tiny.decoder(net={"classes": 3}, process=Process(timesteps=3, variance="learned", loss="hybrid"))
    stage.network.classes.weight.data *= 30
    stage.save(tmp_path / "decoder.safetensors")
    bits = []
    for classes in ([0, 1], [2, 1], [0, 1]):
        code, said, report = run(tmp_path, labelled(tmp_path, classes))
        assert code == 0 and "given their class" in said
        bits.append(report["bits_per_dim"])
    assert bits[0] == bits[2] != bits[1]
    for classes, words in (
        ([0, None], "takes classes 0 to 2; the record of p1 has none"),
        ([0, 3], "takes classes 0 to 2; the record of p1 has 3"),
        (["cat"], "the class of p0 is 'cat'; it must be an integer"),
    ):
        code, said, _ = run(tmp_path, labelled(tmp_path, classes))
        assert code == 2 and words in said and "Traceback" not in said


def test_an_upsampler_of_pictures_is_given_smaller_ones():
    """One that diffuses residuals has no bits; one that diffuses the pictures themselves has."""
    stage = tiny.upsampler(size=16, low=8)
    samples = list(read_shards([ICONS]))[:2]
    assert measured.likelihood(stage, samples, steps=2)["given"] == ["smaller picture"]
    x0, conditions = measured.examples(stage, None, samples, 64)
    small = x0.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5))
    torch.testing.assert_close(conditions["base"], stage.enlarge(small))
    decoder = tiny.decoder(net={}, process=Process(predicts="v", variance="learned", loss="hybrid"))
    pipeline = Pipeline(decoder, upsamplers=[tiny.upsampler(size=16, low=8, residual_scale=0.3)])
    with pytest.raises(ValueError, match="the upsampler-16 diffuses what a smaller picture lacks"):
        measured.stage_of(pipeline, "upsampler-16")
    with pytest.raises(ValueError, match="has no stage 'prior'; it has: decoder, upsampler-16"):
        measured.stage_of(pipeline, "prior")
    with pytest.raises(ValueError, match="the prior makes embeddings"):
        measured.stage_of(tiny_pipeline(), "prior")


@pytest.mark.parametrize("words, said", [
    (["{run}", "nowhere.tar"], "no shards at nowhere.tar"),
    (["nosuch", ICONS], "there is no model 'nosuch'"),
    (["{run}", ICONS, "--stage", "upsampler-64"], "has no stage 'upsampler-64'; it has: decoder"),
    (["{run}", ICONS, "--limit", "0"], "--limit must be at least 1"),
    (["{run}", ICONS, "--batch-size", "0"], "--batch-size must be at least 1"),
    (["{run}", ICONS, "--size", "4"], "pictures of 4 pixels are smaller than the stage's 8"),
    (["{run}", ICONS, "--steps", "13"], "13"),
    (["{run}", ICONS, "--json", "nowhere/bits.json"], "nowhere/bits.json cannot be written"),
])  # fmt: skip
def test_mistakes_are_one_message(checkpoint, run, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    code, err, report = run(*(word.format(run=checkpoint) for word in words))
    assert code == 2 and said in err and "Traceback" not in err
    assert report == {} and not list(tmp_path.glob("*.json"))
