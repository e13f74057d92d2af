"""A model whose prior predicts an embedding's components in turn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import awake, randn
from tiny_models import WIDTH, tiny_pipeline

from unclip.checkpoint import CheckpointError
from unclip.pipeline.pipeline import Pipeline
from unclip.plan import plan
from unclip.stages import ARPrior, ARPriorStageConfig

NET = {"embed_dim": WIDTH, "text_dim": WIDTH, "text_length": 16, "width": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    whole = tiny_pipeline()
    net = {**NET, "components": 5, "buckets": 8, "similarities": 4}
    torch.manual_seed(0)
    prior = awake(ARPrior(ARPriorStageConfig(net=net)))
    images, texts = (F.normalize(randn(50, WIDTH, seed=seed), dim=-1) for seed in (1, 2))
    prior.set_statistics(images.mean(0), images.std(0))
    prior.set_codes(texts, images)
    model = Pipeline(whole.decoder, prior, list(whole.upsamplers), whole.clip, "tiny")
    return Pipeline.load(model.save(tmp_path_factory.mktemp("model")), "cpu")  # CLIP is stored by halves


def test_a_saved_model_draws_the_same_pictures(pipeline, tmp_path):
    again = Pipeline.load(pipeline.save(tmp_path / "model"), "cpu")
    assert isinstance(again.prior, ARPrior)
    options = {"n": 2, "seed": 3, "negative_prompt": "a dog", "prior_guidance_scale": 3.0}
    one, two = (model.generate("a cat", **options) for model in (pipeline, again))
    assert [picture.tobytes() for picture in one] == [picture.tobytes() for picture in two]


def test_an_embedding_depends_on_prompt_seed_and_number_alone(pipeline):
    prompts = ["a cat", "a dog that runs"]
    embed = pipeline.embed_prompt(prompts, n=3, seed=5)
    assert embed.shape == (6, WIDTH)
    torch.testing.assert_close(embed.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(pipeline.embed_prompt(prompts, n=3, seed=5, batch_size=1), embed)
    torch.testing.assert_close(pipeline.embed_prompt("a dog that runs", n=2, seed=5), embed[3:5])
    assert (pipeline.embed_prompt(prompts, n=3, seed=6) != embed).any(1).all()
    halves = pipeline.generate("a cat", image_embed=pipeline.embed_prompt("a cat", seed=5), seed=5)
    assert halves.tobytes() == pipeline.generate("a cat", seed=5).tobytes()


def test_options_of_the_prior_are_heard(pipeline):
    plain, led, away = (
        pipeline.embed_prompt("a cat", n=8, **options)
        for options in ({}, {"prior_guidance_scale": 9.0}, {"negative_prompt": "a dog"})
    )
    assert (plain != led).any() and (plain != away).any()


@pytest.mark.attack
def test_steps_of_a_prior_that_has_none_are_refused(pipeline):
    with pytest.raises(ValueError, match="the prior of tiny predicts .* takes no prior_steps"):
        pipeline.generate("a cat", prior_steps=4)


@pytest.mark.attack
def test_another_stage_in_its_place_is_refused(pipeline, tmp_path):
    folder = pipeline.save(tmp_path / "model")
    (folder / "decoder.safetensors").replace(folder / "prior.safetensors")
    with pytest.raises(CheckpointError, match="holds a decoder, not a prior"):
        Pipeline.load(folder, "cpu")


def test_it_is_planned(pipeline, tmp_path):
    """With its parameters, and more to hold for more pictures."""
    folder: Path = pipeline.save(tmp_path / "model")
    one, four = ({row.stage: row for row in plan(folder, pictures=n).rows}["prior"] for n in (1, 4))
    assert one.parameters == sum(weight.numel() for weight in pipeline.prior.parameters())
    assert 0 < one.activations < four.activations
