"""What decoders, upsamplers and classifiers are trained on: what their programs make of pictures."""

from __future__ import annotations

import itertools
import json
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from runs import SETTINGS, forget, of_process
from shards import encoded, noise, uneven
from tiny import DIM, INPUTS, NET, TEXT
from torch import Tensor

from training import classifier, decoder, prior
from training.data.config import DataConfig
from training.data.source import Source
from training.run.settings import Training
from training.streams import Purpose, numbers, streams
from training.tasks import frozen, pictures, start
from training.tasks.frozen import frozen_clip
from training.tasks.pictures import PictureTask
from training.tasks.recipes import PictureRecipe
from unclip.config import ConfigError
from unclip.data.batches import Batch
from unclip.data.writing import ShardWriter
from unclip.guides.classifier import ClassifierStageConfig
from unclip.pipeline.conditions import conditions_of
from unclip.stages import Decoder, DecoderStageConfig

UPSAMPLER = {
    "net": {**NET, "image_size": 16, "in_channels": 6},
    "process": {"predicts": "v"},
    "low_res": {"size": 8, "blur": 0.6, "noise": 0.2, "residual_scale": 0.3},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """24 pictures of 16 pixels, each of one of three classes."""
    with ShardWriter(tmp_path_factory.mktemp("shards"), "some") as writer:
        for number in range(24):
            record = f'{{"class": {number % 3}, "caption": "picture {number}"}}'.encode()
            writer.write(str(number), {"png": encoded(noise(16, 16, number)), "json": record})
    return [str(path) for path in writer.paths]


class Clip:
    """Its embedding of a picture is the mean of each third of its rows, by colour; of a text, its length."""

    embed_dim, text_dim, identity = DIM, 5, "fake#1"

    def encode_image(self, image: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(image, (2, 1)).flatten(1)

    def encode_text(self, texts: list[str]) -> SimpleNamespace:
        n, length = len(texts), torch.tensor([float(len(text)) for text in texts])
        made = SimpleNamespace(
            tokens=length.view(n, 1, 1).expand(n, 4, 5),
            embed=length[:, None].expand(n, DIM),
            mask=(torch.arange(4) < 2).expand(n, 4),
        )
        made.trimmed = lambda: made
        return made


def task_of(
    shards: list[str],
    stage: dict,
    rank: int = 0,
    world: int = 1,
    data: dict | None = None,
    **settings: object,
) -> PictureTask:
    data = {"shards": shards, "heldout": shards, "size": 16, "shuffle": 8, **(data or {})}
    train = Training(**{**SETTINGS, "out": "", "seed": 3, **settings})
    recipe = PictureRecipe(data=DataConfig(**data), stage=DecoderStageConfig(**stage), train=train)
    torch.manual_seed(0)
    return PictureTask(recipe, Decoder(recipe.stage), of_process(rank, world))


@pytest.mark.parametrize("rank, world, crop", [(0, 1, None), (1, 2, 8)])
def test_an_upsampler_learns_from_spoilt_small_pictures(rank, world, crop, shards):
    """By the picture's number in its own stream; what it learns is what the enlarged small one lacks."""
    task = task_of(shards, UPSAMPLER, rank, world, {"crop": crop})
    n, stage, start = 8 // world, task.stage, 2
    source = Source(task.recipe.data, 3, rank, world)
    side = (crop or 16) // 2
    for number, examples in enumerate(itertools.islice(task.batches(start), 2), start):
        (batch,) = itertools.islice(source.batches(n, number), 1)
        small = F.avg_pool2d(batch.image, 2)
        assert small.shape[-1] == side
        spoilt = stage.corrupt(batch.image, streams(3, Purpose.CORRUPT, numbers(number, n, rank, world)))
        base = stage.enlarge(spoilt)
        assert examples.keys == batch.key and (spoilt - small).abs().mean() > 0.02
        torch.testing.assert_close(examples.conditions["base"], base)
        torch.testing.assert_close(examples.x0, (batch.image - base) / 0.3)


def test_an_upsampler_is_validated_on_small_pictures_as_they_are(shards):
    task = task_of(shards, UPSAMPLER)
    (examples,) = task.validation()
    held = task.source.heldout(256)
    torch.testing.assert_close(examples.conditions["base"], task.stage.enlarge(F.avg_pool2d(held.image, 2)))
    assert examples.keys == held.key and len(examples) == 24


@pytest.mark.parametrize("rank", [0, 1])
def test_a_decoder_learns_its_processs_pictures_at_its_size(rank, shards):
    task = task_of(shards, {"net": NET, "process": {"predicts": "v"}}, rank, 2)
    examples = next(task.batches(1))
    assert task.stage.size == 8 and task.order == {}
    (batch,) = itertools.islice(Source(task.recipe.data, 3, rank, 2).batches(4, 1), 1)
    assert examples.keys == batch.key and torch.equal(examples.x0, F.avg_pool2d(batch.image, 2))
    other = Source(task.recipe.data, 3, 1 - rank, 2)
    assert examples.keys != next(other.batches(4, 1)).key
    assert task_of(shards, {"net": NET, "process": {"predicts": "v"}}, seed=4).source.seed == 4


def test_embeddings_are_measured_on_the_same_pictures_by_every_process(shards, monkeypatch):
    """By their mean and standard deviation the stage whitens; and it says of which CLIP."""
    monkeypatch.setattr(pictures, "frozen_clip", lambda *_: (Clip(), "fake#1"))
    monkeypatch.setattr(
        PictureTask, "_measure_embeddings", partialmethod(PictureTask._measure_embeddings, batches=3, n=5)
    )
    stage = {"net": {**NET, "image_embed_dim": DIM}, "process": {"predicts": "v"}}
    tasks = [task_of(shards, stage, *process) for process in ((0, 1), (1, 2))]
    source = Source(tasks[0].recipe.data, 3).batches(5)
    embeds = torch.cat([Clip().encode_image(next(source).image) for _ in range(3)])
    for task in tasks:
        torch.testing.assert_close(task.stage.embed_mean, embeds.mean(0))
        torch.testing.assert_close(task.stage.embed_std, embeds.std(0))
        assert task.stage.facts == {"clip": "fake#1"}
        batch = next(task.source.batches(4))
        told = task.conditions(batch, None)["image_embed"]
        torch.testing.assert_close(told, (Clip().encode_image(batch.image) - embeds.mean(0)) / embeds.std(0))


def test_statistics_of_kept_embeddings_are_those_that_were_measured(monkeypatch):
    kept = SimpleNamespace(mean=torch.full((DIM,), 0.25), std=torch.full((DIM,), 0.5))
    monkeypatch.setattr(pictures, "Embeddings", lambda folder: kept if folder == "kept" else None)
    stage = Decoder(DecoderStageConfig(net={**NET, "image_embed_dim": DIM}, process={"predicts": "v"}))
    recipe = SimpleNamespace(data=SimpleNamespace(embeddings="kept"))
    source = SimpleNamespace(embeds=None)  # of no pool
    PictureTask._measure_embeddings(SimpleNamespace(recipe=recipe, stage=stage, source=source))
    assert torch.equal(stage.embed_mean, kept.mean) and torch.equal(stage.embed_std, kept.std)


def test_a_stage_is_told_what_it_takes_and_nothing_else():
    """Of a batch of two, with CLIP's text, its one vector, classes, and the picture to be inpainted."""
    batch = Batch(torch.rand(2, 3, 8, 8) * 2 - 1, ["cat", "a dog"], ["a", "b"], torch.tensor([2, 0]))
    net = {**NET, **INPUTS, "text_embed_dim": DIM, "in_channels": 7}
    config = {"net": net, "process": {"predicts": "v"}, "inpaint": True}
    stage, text = Decoder(DecoderStageConfig(**config)), Clip().encode_text(batch.caption)
    told = conditions_of(stage, Clip(), batch, None, picture=batch.image)
    assert torch.equal(told["text"], text.tokens) and torch.equal(told["text_mask"], text.mask)
    assert torch.equal(told["text_embed"], text.embed) and told["classes"].tolist() == [2, 0]
    assert torch.equal(told["image_embed"], Clip().encode_image(batch.image)) and told["has_image"].all()
    whole = stage.conditions(2, image=batch.image, classes=batch.classes)["known"]
    assert torch.equal(told["known"], whole) and whole.any()
    plain = Decoder(DecoderStageConfig(net=NET, process={"predicts": "v"}))
    assert conditions_of(plain, None, batch, None) == {}


def test_a_text_transformers_tokenizer_is_that_of_the_recipe(shards, monkeypatch):
    asked = []
    tokenizer = SimpleNamespace(
        vocab_size=40,
        tokenize=lambda captions: (
            torch.tensor([[len(caption)] * 6 for caption in captions]),
            torch.ones(len(captions), 6).bool(),
        ),
    )
    monkeypatch.setattr(pictures, "tokenizer_of", lambda *args: asked.append(args) or tokenizer)
    net = {
        **NET,
        "attention_resolutions": [8],
        "context_channels": 8,
        "text_dim": 8,
        "text_embed_dim": 8,
        "text_project": False,
    }
    task = task_of(shards, {"net": net, "text": TEXT, "process": {"predicts": "v"}})
    assert asked == [(None, task.stage.config.text)]
    examples = next(task.batches(0))
    assert examples.conditions["tokens"][:, 0].tolist() == [len(f"picture {key}") for key in examples.keys]


# The CLIP that a stage is trained with


STAGES = {
    "nothing": {},
    "image": {"image_embed_dim": DIM},
    "text": {"text_dim": 5, "context_channels": 8},
    "vector": {"text_embed_dim": DIM},
}


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("embedded", [None, "vectors", "states"])
def test_a_clip_is_loaded_where_the_stage_needs_what_is_not_kept(kind, embedded, monkeypatch):
    """Without embeddings for all but a stage that takes nothing; with them, for states that were not kept."""
    checked = []
    kept = SimpleNamespace(
        tokens=embedded == "states",
        dim=DIM,
        text_dim=5,
        clip="fake#1",
        folder="kept",
        check_clip=lambda source: checked.append(source),
        check=lambda known, source: checked.append((known, source)),
    )
    monkeypatch.setattr(frozen, "Embeddings", lambda folder: kept)
    monkeypatch.setattr(frozen, "load_clip", lambda source: SimpleNamespace(to=lambda device: Clip()))
    stage = Decoder(DecoderStageConfig(net={**NET, **STAGES[kind]}, process={"predicts": "v"}))
    recipe = SimpleNamespace(clip="here", data=SimpleNamespace(embeddings=embedded))
    clip, identity = frozen_clip(recipe, stage, "cpu")
    loaded = kind != "nothing" and (embedded is None or (kind == "text" and embedded == "vectors"))
    assert (clip is not None) == loaded and identity == (None if kind == "nothing" else "fake#1")
    assert checked == (
        [] if kind == "nothing" or embedded is None else [("fake#1", "here")] if loaded else ["here"]
    )
    if kind == "nothing":
        return
    monkeypatch.setattr(Clip, "embed_dim", 99)
    monkeypatch.setattr(Clip, "text_dim", 99)
    kept.dim = kept.text_dim = 99
    with pytest.raises(ConfigError, match=f"dim is {5 if kind == 'text' else DIM}, but .* has 99"):
        frozen_clip(recipe, stage, "cpu")


# The programs


@pytest.mark.parametrize(
    "program, name", [(decoder, "PictureTask"), (prior, "PriorTask"), (classifier, "ClassifierTask")]
)
def test_a_programs_weights_begin_as_its_seed_says(program, name, shards, tmp_path, monkeypatch):
    """Whatever was drawn before; and its recipe reaches the loop whole."""
    stage = {
        "PictureTask": {"net": NET, "process": {"predicts": "v"}},
        "PriorTask": {
            "net": {"embed_dim": 6, "text_dim": 5, "text_length": 7, "width": 16, "layers": 1, "heads": 2}
        },
        "ClassifierTask": {"net": {**NET, "classes": 3}},
    }[name]
    train = {"out": str(tmp_path / "run"), "pictures": 8, "batch_size": 8, "trackers": []}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"data": {"shards": shards, "size": 16}, "stage": stage, "train": train}))
    begun: list[tuple] = []
    monkeypatch.setattr(program, name, lambda *_: SimpleNamespace(tokenizer=None))
    monkeypatch.setattr(start, "train", lambda *args: begun.append(args))
    for number, seed in enumerate((1, 1, 2)):
        forget()
        torch.manual_seed(number)
        argv = [str(recipe), f"train.seed={seed}"]
        program.main(argv)
    weights = [torch.cat([weight.flatten() for weight in stage.parameters()]) for stage, *_ in begun]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert all(settings is made.train and settings.pictures == 8 for _, _, settings, made, _ in begun)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_classifier_learns_its_processs_pictures_at_its_size(rank, shards, tmp_path):
    train = Training(**{**SETTINGS, "out": "", "seed": 3})
    stage = ClassifierStageConfig(net={**NET, "classes": 3})

    def task(**data: object) -> classifier.ClassifierTask:
        data = DataConfig(**{"shards": shards, "heldout": shards, "size": 16, **data})
        return classifier.ClassifierTask(
            classifier.ClassifierRecipe(data=data, stage=stage, train=train),
            classifier.Classifier(stage),
            of_process(rank, 2),
        )

    made = task()
    examples = next(made.batches(3))
    (batch,) = itertools.islice(Source(made.recipe.data, 3, rank, 2).batches(4, 3), 1)
    assert examples.keys == batch.key and torch.equal(examples.x0, F.avg_pool2d(batch.image, 2))
    assert examples.conditions["classes"].tolist() == [int(key) % 3 for key in batch.key]
    (held,) = made.validation()
    assert sorted(held.keys) == sorted(map(str, range(24))) and held.x0.shape[-1] == 8
    assert task(shards=[f"pipe:cat {path}" for path in uneven(tmp_path, [2])]).order["processes"] == 2
    with pytest.raises(ConfigError, match="pictures of 4 pixels are smaller"):
        task(crop=4)


def test_an_order_that_depends_on_processes_is_known_to_the_loop(tmp_path: Path):
    through = [f"pipe:cat {path}" for path in uneven(tmp_path, [2])]
    task = task_of(through, {"net": NET, "process": {"predicts": "v"}}, 0, 2, {"workers": 3, "heldout": []})
    assert task.order == {"processes": 2, "workers": 3}
