"""What the verbs of a picture ask of a model, down to the noise; nothing is drawn here."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import awake, decoder, randn
from tiny_models import WIDTH, tiny_clip

from unclip.data.batches import shrink
from unclip.diffusion.noise import Noise, fold
from unclip.diffusion.samplers import Step
from unclip.nets.prior import PriorConfig
from unclip.options import Options
from unclip.pipeline import edits
from unclip.pipeline.edits import slerp
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import Decoder, LowRes, Prior, PriorStageConfig, Process, Sampling

pytestmark = pytest.mark.usefixtures("float32")
SAMPLING = Sampling(guidance_scale=2.0, guidance_rescale=0.4, threshold="dynamic", noise_scale=0.9)
OWN = randn(1, 3, 8, 8, seed=9)  # the noise that every picture is said to come from, times its sum


def model(unit_norm: bool = True) -> Pipeline:
    """Text -> embedding -> 8 pixels of a class -> 16 pixels."""
    net = PriorConfig(embed_dim=WIDTH, text_dim=WIDTH, text_length=16, width=16, layers=1, heads=2)
    prior = Prior(PriorStageConfig(net=net, sampling=Sampling(steps=2), unit_norm=unit_norm))
    upsampler = decoder(
        net={"in_channels": 6, "image_size": 16}, process=Process(predicts="v"), low_res=LowRes(size=8)
    )
    base = decoder(net={"image_embed_dim": WIDTH, "classes": 3}, sampling=SAMPLING)
    return Pipeline(base, awake(prior), [upsampler], tiny_clip(), "small")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return model()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The wishes that are drawn, with their batch sizes, and how pictures are followed back."""
    asked = SimpleNamespace(wishes=[], denoised=[], inverted=[])

    def drawn(self: Pipeline, wish, batch_size=None):
        asked.wishes.append((wish, batch_size))
        return []

    def denoise(self: Decoder, *told, **more):
        asked.denoised.append((*told, more))
        return "denoise"

    def invert(denoise, schedule, x, steps):
        asked.inverted.append((denoise, schedule, x, list(steps)))
        yield Step(1, x, x)
        yield Step(1000, x.sum() * OWN, x)

    monkeypatch.setattr(Pipeline, "drawn", drawn)
    monkeypatch.setattr(Decoder, "denoise", denoise)
    monkeypatch.setattr(edits, "invert", invert)
    return asked


def picture(seed: int) -> Image.Image:
    """16 pixels, so that nothing is resized."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    return Image.fromarray(pixels)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def fresh(seeds: list[int]) -> torch.Tensor:
    return 0.9 * Noise(seeds)((3, 8, 8))


def own(image: Image.Image) -> torch.Tensor:
    return shrink(tensor(image), 8).sum() * OWN


def test_a_picture_is_followed_back_as_it_will_be_drawn(pipeline, asked):
    """By the guidance, levels and class of what follows, from its embedding, at the decoder's size."""
    given = {
        "steps": 7,
        "guidance_scale": 3.0,
        "class_": 2,
        "sampler": "heun",
        "upsampler_steps": 3,
        "guidance_interval": (0.2, 0.8),
        "apg": (0.5, 9.0, -0.2),
    }
    pipeline.vary(picture(0), 3, spread=0.25, seed=5, batch_size=2, **given)
    embed = pipeline.clip.encode_image(tensor(picture(0)))
    [(wish, batch_size)], stage = asked.wishes, pipeline.decoder
    seeds = [fold(5, k) for k in range(3)]
    assert (wish.seeds, batch_size, wish.options) == (seeds, 2, Options(**given))
    assert wish.texts is None and wish.classes is None
    torch.testing.assert_close(wish.embed, embed.expand(3, -1))
    torch.testing.assert_close(wish.start, slerp(own(picture(0)), fresh(seeds), 0.25))
    [(conditions, null, scale, more)] = asked.denoised
    of_guidance = {"guidance_rescale": 0.4, "guidance_interval": (0.2, 0.8), "threshold": "dynamic"}
    of_guidance |= {"apg": (0.5, 9.0, -0.2), "weaker": None}
    assert (scale, more) == (3.0, of_guidance)
    told = stage.conditions(1, image_embed=embed, classes=torch.tensor([2]))
    for found, wanted in ((conditions, told), (null, stage.null(told))):
        assert found.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key])
    [(denoise, schedule, x, steps)] = asked.inverted
    assert (denoise, schedule) == ("denoise", stage.schedule)
    assert steps == stage.levels(SAMPLING.model_copy(update={"steps": 7}))[::-1]
    torch.testing.assert_close(x, shrink(tensor(picture(0)), 8))


def test_a_verb_draws_by_ddim_in_fifty_steps_without_guidance_unless_told_otherwise(pipeline, asked):
    pipeline.vary(picture(0), 2, sampler=None, steps=None, progress=print)
    pipeline.interpolate(picture(0), "a cat", 2, batch_size=3, watch=print)
    usual = Options(sampler="ddim", steps=50, guidance_scale=1.0)
    (varied, of_vary), (path, of_path) = asked.wishes
    assert varied.options == path.options == usual and (of_vary, of_path) == (16, 3)
    assert varied.progress is print and path.watch is print
    assert varied.start is None and len(asked.inverted) == 1  # the embedding alone is kept: the path's end


def test_a_path_is_one_noise_between_two_and_one_embedding_between_two(pipeline, asked):
    """Each picture's noise is that of its own embedding; pictures between differ by nothing else."""
    a, b = picture(0), picture(1)
    pipeline.interpolate(a, b, 4, seed=5, batch_size=2, steps=7)
    embeds = [pipeline.clip.encode_image(tensor(one)) for one in (a, b)]
    [(wish, batch_size)] = asked.wishes
    assert (wish.seeds, batch_size) == ([fold(5, 0)] * 4, 2)
    shares = (0, 1 / 3, 2 / 3, 1)
    torch.testing.assert_close(wish.embed, torch.cat([slerp(*embeds, share) for share in shares]))
    torch.testing.assert_close(wish.start, torch.cat([slerp(own(a), own(b), share) for share in shares]))
    for (conditions, *_), embed in zip(asked.denoised, embeds, strict=True):
        torch.testing.assert_close(conditions["image_embed"], pipeline.decoder.whiten(embed))
    with pytest.raises(ValueError, match="n must be at least 2"):
        pipeline.interpolate(a, b, 1)


def test_a_text_ends_a_path_where_it_would_be_drawn(pipeline, asked):
    pipeline.interpolate("a cat", "a dog", 2, seed=5, prior_steps=3)
    [(wish, _)] = asked.wishes
    texts = [pipeline.embed_prompt(text, seed=5, prior_steps=3) for text in ("a cat", "a dog")]
    torch.testing.assert_close(wish.embed, torch.cat(texts))
    torch.testing.assert_close(wish.start, fresh([fold(5, 0)] * 2))
    assert not torch.equal(texts[0], pipeline.embed_prompt("a cat", seed=6, prior_steps=3))
    assert not torch.equal(texts[0], pipeline.embed_prompt("a cat", seed=5)) and not asked.inverted
    pipeline.interpolate("a cat", "a dog", 2, seed=5, prior_steps=3, prior_guidance_scale=4.0)
    (_, (guided, _)) = asked.wishes
    strong = pipeline.embed_prompt("a cat", seed=5, prior_steps=3, prior_guidance_scale=4.0)
    torch.testing.assert_close(guided.embed[:1], strong)
    assert not torch.allclose(strong, texts[0], atol=1e-3)


@pytest.mark.parametrize("unit_norm", [True, False])
def test_what_clip_sees_is_as_long_as_the_decoder_knows_it(unit_norm):
    pipeline = model(unit_norm)
    embed = pipeline.encode_image(torch.cat([tensor(picture(k)) for k in (0, 1)]))
    wanted = torch.cat([pipeline.clip.encode_image(tensor(picture(k))) for k in (0, 1)])
    torch.testing.assert_close(F.normalize(embed, dim=1), wanted)
    assert torch.allclose(embed.norm(dim=1), torch.ones(2)) == unit_norm


def test_parts_that_work_are_lent_to_the_device(pipeline, asked, monkeypatch):
    lent = []
    monkeypatch.setattr(pipeline, "_lends_to", torch.device("cpu"))
    monkeypatch.setattr(
        "unclip.pipeline.model.lent", lambda parts, device: lent.append(parts) or nullcontext()
    )
    wish = edits.wish_of(pipeline, image_embed=torch.zeros(1, WIDTH))
    image = tensor(picture(0))
    edits.inverted(pipeline, replace(wish, embed=pipeline.encode_image(image)), image)
    assert lent == [(pipeline.clip,), (pipeline.decoder,)]
