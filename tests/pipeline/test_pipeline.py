"""The whole chain: what reaches which stage, one seed a picture, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import apart, pixels
from tiny_models import WIDTH, lone_decoder, tiny_clip

import unclip
from unclip.diffusion.noise import Noise, fold
from unclip.options import Options
from unclip.pipeline.pipeline import Pipeline
from unclip.pipeline.request import Wish
from unclip.stages import Decoder

pytestmark = pytest.mark.usefixtures("float32")
LONG = " ".join(["cat"] * 14 + ["dog", "fish"])  # two words more than fit into the context


def glide() -> Pipeline:
    """Text straight into the decoder: no prior."""
    return Pipeline(lone_decoder(text_dim=WIDTH, context_channels=8), clip=tiny_clip(), name="glide")


def unconditional() -> Pipeline:
    return Pipeline(lone_decoder(), name="nothing")


def test_one_picture_or_a_list(pipeline):
    one = pipeline.generate("a cat")
    assert one.size == (64, 64) and one.mode == "RGB" and pixels(one).std() > 1
    two = pipeline.generate("a cat", n=2)
    assert isinstance(two, list) and len(two) == 2 and apart(one, two[0]) <= 1
    several = pipeline.generate(["a cat", "a dog"], n=2)
    assert len(several) == 4  # prompt by prompt
    assert apart(two[0], several[0]) <= 1 and apart(two[1], several[1]) <= 1
    assert apart(several[0], several[2]) > 3
    assert len(pipeline.generate(["a cat"])) == 1 and pipeline.generate([]) == []


def test_a_picture_depends_on_prompt_seed_and_number_alone(pipeline):
    prompts = ["a cat", "a much longer text with many words", "a dog"]
    together = pipeline.generate(prompts, n=2, seed=5)
    for k, prompt in enumerate(prompts):
        for batch_size in (1, 3):
            alone = pipeline.generate(prompt, n=2, seed=5, batch_size=batch_size)
            assert apart(alone[0], together[2 * k]) <= 1 and apart(alone[1], together[2 * k + 1]) <= 1
    assert apart(together[0], together[1]) > 3
    assert apart(pipeline.generate("a cat", seed=6), together[0]) > 3
    assert apart(pipeline.generate("a cat", seed=np.int64(5)), together[0]) <= 1


def test_a_negative_prompt_steers_prior_and_decoder(pipeline):
    plain, away, other = (
        pipeline.generate("a cat", negative_prompt=text) for text in (None, "a dog", "a car")
    )
    assert apart(plain, away) > 1 and apart(away, other) > 1
    one = pipeline.generate("a cat", negative_prompt="a dog", prior_guidance_scale=1, guidance_scale=2)
    assert apart(one, pipeline.generate("a cat", prior_guidance_scale=1, guidance_scale=2)) > 1
    with pytest.raises(ValueError, match="there is no guidance"):
        pipeline.generate("a cat", negative_prompt="a dog", prior_guidance_scale=1, guidance_scale=1)


def test_guidance_in_the_whole_interval_is_plain_guidance(pipeline, small_icons):
    for model in (pipeline, small_icons):
        given = {"guidance_scale": 3.0, "steps": 4}
        drawn = {
            interval: model.generate("a red heart", guidance_interval=interval, **given)
            for interval in (None, "0,1", (0.0, 1e-9), "0.3,0.7")
        }
        assert apart(drawn[None], drawn["0,1"]) == 0 and apart(drawn[None], drawn["0.3,0.7"]) > 0
        given["guidance_scale"] = 1.0
        assert apart(model.generate("a red heart", **given), drawn[0.0, 1e-9]) == 0
        with pytest.raises(ValueError, match="guidance_interval is of .* there is no guidance"):
            model.generate("a red heart", guidance_interval=(0.3, 0.7), **given)
        with pytest.raises(ValueError, match="apg is of .* there is no guidance"):
            model.generate("a red heart", apg=(0, 15, -0.5), **given)


@pytest.fixture
def told(monkeypatch) -> dict[str, tuple]:
    """What each stage was told when it was sampled: its settings, and the objective or None."""
    seen = {}

    def record(kind, real):
        def sample(self, conditions, noise, sampling=None, null=None, objective=None, climb=None):
            name = "upsampler" if kind == "decoder" and self.config.low_res else kind
            seen[name] = (sampling, objective)
            extra = () if kind == "prior" else (objective, climb)
            return real(self, conditions, noise, sampling, null, *extra)

        return sample

    monkeypatch.setattr("unclip.stages.Prior.sample", record("prior", unclip.stages.Prior.sample))
    monkeypatch.setattr("unclip.stages.Decoder.sample", record("decoder", Decoder.sample))
    return seen


@pytest.mark.parametrize("option, stage, field, value", [
    ("steps", "decoder", "steps", 3),
    ("prior_steps", "prior", "steps", 3),
    ("upsampler_steps", "upsampler", "steps", 3),
    ("guidance_scale", "decoder", "guidance_scale", 3.5),
    ("guidance_interval", "decoder", "guidance_interval", (0.2, 0.8)),
    ("apg", "decoder", "apg", (0.5, 9.0, -0.2)),
    ("prior_guidance_scale", "prior", "guidance_scale", 3.5),
    ("sampler", "decoder", "sampler", "ddim"),
])  # fmt: skip
def test_an_option_reaches_its_stage_and_no_other(pipeline, told, option, stage, field, value):
    stages = {"prior": pipeline.prior, "decoder": pipeline.decoder, "upsampler": pipeline.upsamplers[0]}
    pipeline.generate("a cat", **{option: value})
    for name, (sampling, objective) in told.items():
        changed = {field: value} if name == stage else {}
        assert sampling == stages[name].config.sampling.model_copy(update=changed) and objective is None
    assert told.keys() == stages.keys()


def test_clip_guidance_is_for_the_decoder_alone(pipeline, told):
    pipeline.generate("a cat", clip_guidance_scale=2.0)
    assert told["decoder"][1] is not None and told["upsampler"][1] is None


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++2m"])
def test_clip_guidance_raises_the_similarity(pipeline, sampler):
    text = pipeline.encode_text(["a cat"])
    embed = pipeline.sample_prior(text, [0])
    similarity = []
    for scale in (0, 1, 20):
        options = Options(clip_guidance_scale=scale, sampler=sampler, steps=8)
        picture = pipeline.decode(Wish([0], options=options, embed=embed, text=text))
        similarity.append((pipeline.clip.encode_image(picture) @ text.clip.embed[0]).item())
    assert similarity[0] + 0.05 < similarity[1] < similarity[2]


def test_progress_counts_every_step(pipeline):
    calls = []
    pipeline.generate("a cat", steps=3, progress=lambda *call: calls.append(call))
    assert calls == [("decoder", 1, 3), ("decoder", 2, 3), ("decoder", 3, 3), ("upsampler 64", 1, 1)]


def test_the_priors_embedding_depends_on_text_seed_and_negative(pipeline):
    text = pipeline.encode_text(["a cat", "a dog"])
    cat, dog = text[:1], text[1:]

    def apart(a, b):
        return (a - b).abs().max().item()

    first, second, third = pipeline.sample_prior(cat.repeat(3), [4, 5, 4])
    assert torch.allclose(first.norm(), torch.tensor(1.0))
    assert apart(first, third) < 1e-5 and apart(first, second) > 0.01
    assert apart(first, pipeline.sample_prior(cat, [4])[0]) < 1e-4
    assert apart(first, pipeline.sample_prior(dog, [4])[0]) > 0.01
    assert apart(first, pipeline.sample_prior(cat, [4], negative=dog)[0]) > 0.01


@pytest.mark.bitwise
def test_a_negative_prompt_reaches_both(pipeline, monkeypatch):
    told = {}
    for name in ("prior", "decoder"):
        stage = getattr(pipeline, name)
        monkeypatch.setattr(
            stage,
            "sample",
            lambda conditions, noise, sampling, null, *rest, name=name, real=stage.sample: (
                told.setdefault(name, []).append(null),
                real(conditions, noise, sampling, null, *rest),
            )[1],
        )
    pipeline.generate("a cat", negative_prompt="a dog")
    dog = pipeline.encode_text(["a cat", "a dog"])[1:]
    assert torch.equal(told["prior"][0]["text_embed"], dog.repeat(2).clip.embed)  # two candidates
    assert torch.equal(told["decoder"][0]["text"], dog.clip.tokens) and told["decoder"][0]["has_image"].all()
    pipeline.generate("a cat")
    assert told["prior"][-1] is None and told["decoder"][-1] is None


@pytest.mark.bitwise
def test_the_prior_keeps_the_candidate_nearest_to_the_text(pipeline, monkeypatch):
    text = pipeline.encode_text(["a cat", "a dog"])
    drawn = F.normalize(torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0)))
    noises = []
    monkeypatch.setattr(pipeline.prior, "sample", lambda _, noise, *__: noises.append(noise((4,))) or drawn)
    sampling = pipeline.prior.config.sampling.model_copy(update={"candidates": 3})
    monkeypatch.setattr("unclip.pipeline.drawing.override", lambda *_, **__: sampling)
    chosen = pipeline.sample_prior(text, [0, 1])
    own = Noise([fold(seed, k) for seed in (0, 1) for k in range(3)])((4,))
    assert torch.equal(noises[0], own) and len(own.unique(dim=0)) == 6  # each of its own noise
    for k in range(2):
        mine = drawn[3 * k : 3 * k + 3]
        assert torch.equal(chosen[k], mine[(mine @ text.clip.embed[k]).argmax()])


def test_a_prompt_that_is_too_long_is_cut_and_said(pipeline):
    with pytest.warns(UserWarning, match="longer than 16 tokens; this was cut off: 'dog fish'"):
        cut = pipeline.generate(LONG)
    assert apart(cut, pipeline.generate(" ".join(["cat"] * 14))) <= 1


@pytest.mark.parametrize("prompt, options, said", [
    ("", {}, "the prompt is empty"),
    (" \n", {}, "the prompt is empty"),
    (["a cat", ""], {}, "the prompt is empty"),
    (None, {}, "a prompt must be text, not None"),
    (7, {}, "a prompt must be text, not 7"),
    (["a cat", 7], {}, "a prompt must be text, not 7"),
    ("a cat", {"seed": 1.5}, "seed must be an integer, not 1.5"),
    ("a cat", {"seed": "a"}, "seed must be an integer, not 'a'"),
    ("a cat", {"seed": None}, "seed must be an integer, not None"),
    ("a cat", {"n": 0}, "n must be at least 1, not 0"),
    ("a cat", {"n": 1.0}, "n must be an integer, not 1.0"),
    ("a cat", {"batch_size": 0}, "batch_size must be at least 1"),
    ("a cat", {"steps": 0}, "steps: "),
    ("a cat", {"steps": 1001}, "steps must be between 1 and 1000, got 1001"),
    ("a cat", {"prior_steps": 0}, "prior_steps: "),
    ("a cat", {"guidance_scale": -1}, "guidance_scale: "),
    ("a cat", {"guidance_scale": float("inf")}, "guidance_scale: "),
    ("a cat", {"guidance_scale": float("nan")}, "guidance_scale: "),
    ("a cat", {"sampler": "euler"}, "unknown sampler 'euler'; known: ddpm, ddim, dpm\\+\\+2m"),
    ("a cat", {"step": 3}, "step: unknown key"),
])  # fmt: skip
def test_bad_requests_are_value_errors(pipeline, prompt, options, said):
    with pytest.raises(ValueError, match=said):
        pipeline.generate(prompt, **options)


@pytest.mark.parametrize("make, prompt", [(glide, "a cat"), (unconditional, None)])
def test_saved_and_loaded_it_draws_the_same(make, prompt, tmp_path):
    made = make()
    before = made.generate(prompt, n=2)
    loaded = Pipeline.load(made.save(tmp_path / made.name))
    assert (loaded.name, loaded.size, loaded.prior) == (made.name, 8, None)
    after = loaded.generate(prompt, n=2)
    assert apart(before[0], before[1]) > 3
    # CLIP is stored at half precision
    assert all(apart(a, b) <= (2 if prompt else 0) for a, b in zip(before, after, strict=True))


def test_a_whole_pipeline_survives_saving(pipeline, tmp_path):
    again = Pipeline.load(pipeline.save(tmp_path / "again"))
    assert again.description == pipeline.description and again.clip.identity == pipeline.clip.identity
    assert apart(pipeline.generate("a cat"), again.generate("a cat")) == 0
    small = pipeline.save(tmp_path / "small", torch.float16)
    size = {
        folder.name: sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for folder in tmp_path.iterdir()
    }
    assert size["small"] < 0.7 * size["again"]
    assert apart(pipeline.generate("a cat"), Pipeline.load(small).generate("a cat")) < 40


def test_a_glide_heeds_its_text():
    made = glide()
    cat, dog = made.generate(["a cat", "a dog"])
    assert apart(cat, dog) > 3
    assert apart(cat, made.generate("a cat", negative_prompt="a dog")) > 1


def test_an_unconditional_model_takes_no_prompt():
    made = unconditional()
    assert made.generate().size == (8, 8) and len(made.generate(n=3)) == 3
    with pytest.raises(ValueError, match="the model nothing takes no prompt"):
        made.generate("a cat")
