"""What a pipeline tells each of its stages, down to the noise; the stages themselves draw nothing here."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import awake, decoder, seeded
from tiny_glide import guide, mask, picture
from tiny_models import WIDTH, tiny_clip, tiny_pipeline

from unclip.diffusion.noise import fold
from unclip.diffusion.samplers import Step
from unclip.guides.classifier import Classifier, ClassifierStageConfig
from unclip.nets.prior import PriorConfig
from unclip.options import Options
from unclip.pipeline.canvas import canvas_of
from unclip.pipeline.pipeline import Pipeline
from unclip.pipeline.request import Wish
from unclip.stages import Conditions, Decoder, LowRes, Prior, PriorStageConfig, Process, Sampling

TAKEN = {"image_embed_dim": WIDTH, "text_dim": WIDTH, "context_channels": 8, "classes": 3}


class Call(NamedTuple):
    """How a stage was asked to sample."""

    conditions: Conditions
    noise: SimpleNamespace  # seeds and device
    sampling: Sampling
    null: Conditions | None
    objective: object
    climb: object


def whole(**config: object) -> Pipeline:
    """A prior, a decoder and two upsamplers that take all there is, a picture to inpaint among it."""
    net = PriorConfig(embed_dim=WIDTH, text_dim=WIDTH, text_length=16, width=16, layers=1, heads=2)
    prior = awake(
        Prior(PriorStageConfig(net=net, sampling=Sampling(steps=2, guidance_scale=2.0, candidates=2)))
    )
    base = decoder(
        net={**TAKEN, "in_channels": 7}, inpaint=True, sampling=Sampling(guidance_scale=2.0), **config
    )
    ups = [
        decoder(
            net={**TAKEN, "in_channels": 10, "image_size": 2 * size},
            inpaint=True,
            process=Process(predicts="v"),
            low_res=LowRes(size=size),
        )
        for size in (8, 16)
    ]
    return Pipeline(base, prior, ups, tiny_clip(), "whole")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Call]]:
    """By "prior" or a stage's size in pixels. What is drawn depends on the first condition alone."""
    made: dict[str, list[Call]] = {}

    def embed(self: Prior, conditions, noise, sampling=None, null=None):
        made.setdefault("prior", []).append(Call(conditions, noise, sampling, null, None, None))
        return F.normalize(conditions["text_embed"].roll(1, 1), dim=1)

    def draw(self: Decoder, conditions, noise, sampling=None, null=None, objective=None, climb=None):
        made.setdefault(str(self.size), []).append(Call(conditions, noise, sampling, null, objective, climb))
        for t in range(len(self.levels(sampling)) - 2, -1, -1):
            x = conditions["base"] + 0.1 if "base" in conditions else torch.zeros(1, 3, self.size, self.size)
            yield Step(t, x.expand(len(noise.seeds), -1, -1, -1), x)

    monkeypatch.setattr(Prior, "sample", embed)
    monkeypatch.setattr(Decoder, "sample", draw)
    monkeypatch.setattr(
        "unclip.pipeline.drawing.Noise",
        lambda seeds, device: SimpleNamespace(seeds=list(seeds), device=device),
    )
    return made


def test_what_is_not_wanted_has_an_embedding_of_its_own(calls):
    made = whole()
    made.generate("a cat", negative_prompt="a dog", seed=5, prior_steps=3)
    both = made.encode_text(["a cat", "a dog"])  # together, as they were
    cat, dog = both[:1], both[1:]
    wanted, unwanted = calls["prior"]
    assert torch.equal(wanted.conditions["text_embed"], cat.clip.embed.expand(2, -1))
    assert torch.equal(wanted.null["text_embed"], dog.clip.embed.expand(2, -1))
    assert torch.equal(unwanted.conditions["text_embed"], dog.clip.embed.expand(2, -1))
    assert unwanted.null is None and wanted.noise == unwanted.noise and wanted.sampling == unwanted.sampling
    assert wanted.sampling.steps == 3
    [call] = calls["8"]
    for told, text in ((call.conditions, cat), (call.null, dog)):
        embed = made.decoder.whiten(F.normalize(text.clip.embed.roll(1, 1), dim=1))
        torch.testing.assert_close(told["image_embed"], embed)
        assert told["has_image"].all() and torch.equal(told["text"], text.clip.tokens)


def test_every_picture_and_stage_has_noise_of_its_own(calls):
    whole().generate(["a cat", "a dog"], n=2, seed=5, batch_size=3)
    seeds = [fold(5, 0), fold(5, 1), fold(5, 0), fold(5, 1)]
    batches = [seeds[:3], seeds[3:]]
    assert [call.noise.seeds for call in calls["8"]] == batches
    assert [call.noise.seeds for call in calls["prior"]] == [
        [fold(seed, k) for seed in some for k in range(2)] for some in batches
    ]
    for number, size in enumerate(("16", "32")):
        assert [call.noise.seeds for call in calls[size]] == [
            [fold(seed, 1, number) for seed in some] for some in batches
        ]
    assert {call.noise.device for some in calls.values() for call in some} == {torch.device("cpu")}


def test_an_upsampler_is_told_what_the_decoder_is_and_starts_from_its_picture(calls):
    made = whole()
    drawn = made.generate("a cat", class_=2, seed=5, image=picture(), mask=mask())
    [first], [call], [last] = calls["8"], calls["16"], calls["32"]
    for told in (call.conditions, last.conditions):
        assert torch.equal(told["text"], first.conditions["text"])
        assert torch.equal(told["image_embed"], first.conditions["image_embed"])
        assert torch.equal(told["classes"], torch.tensor([2])) and torch.equal(
            told["classes"], first.conditions["classes"]
        )
    canvas = canvas_of(picture(), mask())
    for size, told in (("8", first), ("16", call), ("32", last)):
        image, kept = canvas.at(int(size))
        assert torch.equal(told.conditions["known"], torch.cat([image * kept, kept], 1))
    base = made.decoder.to_picture(torch.zeros(1, 3, 8, 8), first.conditions)
    assert torch.equal(call.conditions["base"], made.upsamplers[0].enlarge(base))
    between = made.upsamplers[0].to_picture(call.conditions["base"] + 0.1, call.conditions)
    assert torch.equal(last.conditions["base"], made.upsamplers[1].enlarge(between))
    assert drawn.size == (32, 32)


@pytest.mark.parametrize("drop_class, known", [(0.1, -1), (0.0, 2)])
def test_guidance_away_from_a_text_keeps_the_class_only_where_there_is_no_other(calls, drop_class, known):
    made = whole(drop_class=drop_class)
    given = {"image": picture(), "mask": mask()}
    made.generate("a cat", negative_prompt="a dog", class_=2, **given)
    [call] = calls["8"]
    assert call.conditions["classes"].tolist() == [2] and call.null["classes"].tolist() == [known]
    assert torch.equal(call.null["known"], call.conditions["known"]) and call.null["known"].any()


def test_classes_of_their_own_go_before_the_one_for_all(calls):
    made, options = whole(), Options(class_=1)
    own = torch.tensor([2, 0])
    text = made.encode_text(["a cat", "a dog"])
    wish = Wish([0, 1], options=options, text=text)
    for some in (replace(wish, classes=own), wish):
        made.upsample(made.decode(some), some)
    assert all(torch.equal(calls[size][0].conditions["classes"], own) for size in ("8", "16", "32"))
    assert all(calls[size][1].conditions["classes"].tolist() == [1, 1] for size in ("8", "16", "32"))


def test_rows_of_a_wish_have_all_that_is_their_own():
    own = {"classes": torch.arange(3), "embed": torch.rand(3, 2), "start": torch.rand(3, 3, 8, 8)}
    wish = Wish([3, 4, 5], ["a", "b", "c"], **own)
    some = wish.rows([2, 0])
    assert (some.seeds, some.texts) == ([5, 3], ["c", "a"])
    assert all(torch.equal(getattr(some, name), value[[2, 0]]) for name, value in own.items())
    assert [part.seeds for part in wish.batches(2)] == [[3, 4], [5]]


def test_without_guidance_nothing_is_encoded_to_move_away_from(calls):
    made = whole()
    made.generate("a cat", negative_prompt="a dog", guidance_scale=1.0)
    assert calls["8"][0].null is None and calls["prior"][0].null is not None


def test_a_decoder_of_nothing_starts_from_no_text(calls):
    made = Pipeline(decoder(net={}, null_text="empty"))
    made.generate()
    assert calls["8"][0].null is None


def led() -> Pipeline:
    """A decoder with both kinds of guides of noised pictures."""
    net = {"image_size": 8, "channels": 16, "channel_mult": (1,), "num_res_blocks": 1, "head_channels": 8}
    classifier = Classifier(ClassifierStageConfig(net={**net, "classes": 3}, scale=2.0))
    made = decoder(net={"text_dim": WIDTH, "context_channels": 8})
    return Pipeline(made, clip=tiny_clip(), guide=guide(), classifier=classifier.requires_grad_(False))


@pytest.mark.parametrize(
    "options, scales",
    [
        ({}, {}),
        ({"clip_guidance_scale": 3.0}, {"guide": 3.0}),
        ({"class_": 2}, {"classifier": 2.0}),
        ({"class_": 2, "classifier_scale": 0.5}, {"classifier": 0.5}),
        ({"class_": 2, "classifier_scale": 0.0}, {}),
        ({"class_": 2, "clip_guidance_scale": 3.0}, {"guide": 3.0, "classifier": 2.0}),
    ],
)
def test_guides_are_asked_for_as_strongly_as_said_and_are_there(calls, monkeypatch, options, scales):
    made, asked, there = led(), {}, []
    parts = {"guide": made.guide, "classifier": made.classifier}
    for name, part in parts.items():
        monkeypatch.setattr(
            part,
            "climb",
            lambda wanted, scale, name=name: (
                asked.update({name: (wanted, scale)}),
                lambda x, t, x0: x * 0 + scale,
            )[1],
        )
    monkeypatch.setattr(
        "unclip.pipeline.model.Model._at_work", lambda self, *some: (there.append(some), torch.no_grad())[1]
    )
    made.generate("a cat", **options)
    assert {name: scale for name, (_, scale) in asked.items()} == scales
    assert list(asked.get("guide", [["a cat"]])[0]) == ["a cat"]
    assert torch.equal(asked.get("classifier", [torch.tensor([2])])[0], torch.tensor([2]))
    [call], x = calls["8"], torch.ones(1, 3)
    assert call.objective is None
    assert (call.climb(x, None, x) == sum(scales.values())).all() if scales else call.climb is None
    assert there[1][0] is made.decoder and all(
        any(parts[name] is part for part in there[1]) for name in scales
    )


def test_clip_leads_where_there_is_no_guide_and_is_there(calls, monkeypatch):
    made, there = tiny_pipeline(), []
    monkeypatch.setattr(
        "unclip.pipeline.model.Model._at_work", lambda self, *some: (there.append(some), torch.no_grad())[1]
    )
    made.generate(["a cat", "a dog"], clip_guidance_scale=3.0)
    call, text = calls["16"][0], made.encode_text(["a cat", "a dog"])
    assert call.climb is None and any(part is made.clip for part in there[2])
    shown = torch.randn(2, 3, 16, 16, generator=seeded(0)).clamp(-1, 1)
    expected = 3.0 * made.clip.logit_scale * (made.clip.encode_image(shown) * text.clip.embed).sum(1)
    torch.testing.assert_close(call.objective(shown), expected)
    assert calls["64"][0].objective is None and calls["64"][0].climb is None


def test_progress_and_watch_are_told_of_every_step_of_the_stages_they_follow(calls):
    said, seen = [], []
    whole().generate(
        "a cat", steps=3, upsampler_steps=2, progress=lambda *step: said.append(step), watch=seen.append
    )
    assert said == [
        ("decoder", 1, 3),
        ("decoder", 2, 3),
        ("decoder", 3, 3),
        ("upsampler 16", 1, 2),
        ("upsampler 16", 2, 2),
        ("upsampler 32", 1, 2),
        ("upsampler 32", 2, 2),
    ]
    assert [step.t for step in seen] == [2, 1, 0] and seen[0].x.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("dtype, enabled", [("float32", {False}), ("bfloat16", {True})])
def test_on_a_cpu_precision_is_that_of_the_weights(calls, monkeypatch, dtype, enabled):
    made, asked = whole().place("cpu", dtype), []
    monkeypatch.setattr(
        "unclip.pipeline.drawing.autocast",
        lambda device, enabled: (asked.append((device, enabled)), torch.no_grad())[1],
    )
    made.generate("a cat")
    assert len(asked) == 5 and set(asked) == {(torch.device("cpu"), one) for one in enabled}


def test_one_prompt_is_one_picture_and_more_are_a_list(calls):
    made = whole()
    assert isinstance(made.generate("a cat"), Image.Image)
    assert [
        len(made.generate(*given, n=n))
        for given, n in ((["a cat"], 2), ([["a cat"]], 1), ([["a cat", "a dog"]], 2))
    ] == [2, 1, 4]


def test_drawing_keeps_nothing_for_a_gradient():
    """Though the weights could have one; of any step that is called by itself."""
    made = tiny_pipeline().requires_grad_()
    text = made.encode_text(["a cat"])
    embed = made.sample_prior(text, [0])
    wish = Wish([0], options=Options(clip_guidance_scale=1.0), embed=embed, text=text)
    small = made.decode(wish)
    assert not any(one.requires_grad for one in (text.clip.embed, embed, small, made.upsample(small, wish)))
