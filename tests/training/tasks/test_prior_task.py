"""What a prior is trained on: pictures that are embedded once, or rows of embeddings made before."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from runs import SETTINGS, forget, of_process
from shards import encoded, noise
from torch import Tensor

from training import prior
from training.data.config import DataConfig
from training.data.embeddings import Embeddings, Rows, save_rows
from training.data.source import Source
from training.run.settings import Training
from training.streams import Purpose, numbers, seed_of
from training.tasks import prior_rows, start
from training.tasks.prior import PriorTask
from training.tasks.prior_rows import RowsTask
from training.tasks.recipes import PriorRecipe
from unclip.config import ConfigError
from unclip.data.order import Order
from unclip.data.writing import ShardWriter
from unclip.stages import Prior, PriorStageConfig

DIM, WORDS = 6, 5
NET = {"embed_dim": DIM, "text_dim": WORDS, "text_length": 7, "width": 16, "layers": 1, "heads": 2}


class Clip:
    """Its embedding of a picture is the mean of its halves by colour; of a text, its last word, a number."""

    embed_dim, text_dim, identity = DIM, WORDS, "fake#1"

    def to(self, device: torch.device) -> Clip:
        return self

    def encode_image(self, image: Tensor) -> Tensor:
        return F.normalize(F.adaptive_avg_pool2d(image, (2, 1)).flatten(1), dim=-1)

    def encode_text(self, texts: list[str]) -> SimpleNamespace:
        n, number = len(texts), torch.tensor([float(text.split()[-1]) for text in texts])
        made = SimpleNamespace(
            tokens=number.view(n, 1, 1).expand(n, 4, WORDS),
            mask=torch.ones(n, 4).bool(),
            embed=F.one_hot(number.long() % DIM, DIM).float(),
        )
        made.trimmed = lambda: made
        return made


# Pictures that are embedded at the start


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Shards of 20 pictures to learn from, and of 7 others."""
    paths = []
    for name, some in (("train", range(20)), ("heldout", range(20, 27))):
        with ShardWriter(tmp_path_factory.mktemp("shards"), name) as writer:
            for number in some:
                writer.write(
                    f"{name}-{number}",
                    {"png": encoded(noise(8, 8, number)), "txt": f"picture {number}".encode()},
                )
        paths += writer.paths
    return [str(path) for path in paths]


@pytest.fixture
def task_of(shards, monkeypatch):
    monkeypatch.setattr("training.tasks.prior.load_clip", lambda source: Clip())
    monkeypatch.setattr(
        PriorTask, "_embed_pictures", partialmethod(PriorTask._embed_pictures, n=8, thumbnails=12)
    )

    def made(rank: int = 0, world: int = 1, **net: object) -> PriorTask:
        data = DataConfig(shards=shards[:1], heldout=shards[1:], size=8, shuffle=8)
        train = Training(**{**SETTINGS, "out": "", "seed": 3})
        recipe = PriorRecipe(
            clip="here", data=data, embeddings=30, train=train, stage=PriorStageConfig(net={**NET, **net})
        )
        return PriorTask(recipe, Prior(recipe.stage), of_process(rank, world))

    return made


def test_a_bank_is_what_the_source_shows_first(task_of):
    """In whole batches, at least as many as asked for; their mean and deviation whiten."""
    task = task_of()
    shown = [*itertools.islice(Source(task.recipe.data, 3).batches(8), 4)]
    embed = torch.cat([Clip().encode_image(batch.image) for batch in shown])
    assert torch.equal(task.bank.embed, embed)
    assert task.bank.key == [key for batch in shown for key in batch.key]
    assert task.bank.caption == [caption for batch in shown for caption in batch.caption]
    assert torch.equal(task.bank.thumbnail.float() / 127.5 - 1, torch.cat([b.image for b in shown])[:12])
    torch.testing.assert_close(task.stage.embed_mean, embed.mean(0))
    torch.testing.assert_close(task.stage.embed_std, embed.std(0))
    assert task.stage.facts == {"clip": "fake#1"} and task.order == {}


def test_two_processes_hold_the_bank_of_one(task_of, monkeypatch):
    whole, shares = task_of().bank, []
    monkeypatch.setattr("training.tasks.prior.gather_object", lambda mine: shares.append(mine[0]) or mine)
    for rank in (0, 1):
        task_of(rank, 2)
    monkeypatch.setattr("training.tasks.prior.gather_object", lambda mine: shares)
    both = task_of(1, 2).bank
    assert len(shares[0][1]) == len(shares[1][1]) == 16 and set(shares[0][2]) != set(shares[1][2])
    assert both.key == whole.key and both.caption == whole.caption
    assert torch.equal(both.embed, whole.embed) and torch.equal(both.thumbnail, whole.thumbnail)


@pytest.mark.parametrize("rank, world", [(0, 1), (1, 2)])
def test_a_batch_is_rows_that_seed_and_number_give(rank, world, task_of, monkeypatch):
    task = task_of()
    task.accelerator, bank = of_process(rank, world), task.bank
    examples, n = next(task.batches(5)), 8 // world
    rows = [seed_of(3, Purpose.SAMPLE, number) % 32 for number in numbers(5, n, rank, world)]
    assert examples.keys == [bank.key[row] for row in rows] and len(set(rows)) > 2
    torch.testing.assert_close(examples.x0, (bank.embed[rows] - bank.embed.mean(0)) / bank.embed.std(0))
    said = [float(bank.caption[row].split()[-1]) for row in rows]
    assert examples.conditions["text"][:, 0, 0].tolist() == said


def test_held_out_pictures_validate_and_the_nearest_known_ones_are_drawn(task_of):
    task = task_of()
    (examples,) = task.validation()
    held = task.heldout
    assert sorted(held.key) == [f"heldout-{number}" for number in range(20, 27)] and examples.keys == held.key
    torch.testing.assert_close(task.stage.unwhiten(examples.x0), held.embed)
    said = [float(caption.split()[-1]) for caption in held.caption]
    assert examples.conditions["text"][:, 0, 0].tolist() == said
    asked = []

    def sample(conditions: dict, noise: object) -> Tensor:
        asked.append((conditions["text"][:, 0, 0].tolist(), len(noise)))
        return task.bank.embed[:7]

    drawn = task.draw(SimpleNamespace(sample=sample))
    assert asked == [(said, 7)] and drawn.size == (6 * 10 - 2, 7 * 10 - 2)
    for row in range(7):
        assert [*drawn.getpixel((0, 10 * row))] == task.bank.thumbnail[row, :, 0, 0].tolist()


def test_a_memory_holds_no_more_names_than_it_has_slots(task_of):
    assert len(task_of(memory=50).stage.network.memory.values.unique(dim=0)) >= 20
    assert len(task_of(memory=4).stage.network.memory.values.unique(dim=0)) == 4


# Rows of embeddings


def unit(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """Two shards of 4 and 3 pictures and one that is held out, with one to three captions a picture."""
    files, number = {}, 0
    for name, count in (("train-0", 4), ("train-1", 3), ("heldout-0", 2)):
        picture = [row for row in range(count) for _ in range(1 + row % 3)]
        captions = [f"{name} {row} caption {k}" for k, row in enumerate(picture)]
        length = [1 + k % 2 for k in range(len(picture))]
        states = torch.arange(sum(length))[:, None].expand(-1, WORDS).half()
        ends = torch.tensor([0, *itertools.accumulate(length)])
        keys = [f"{name}-{row}" for row in range(count)]
        rows = Rows(
            keys,
            captions,
            unit(count, number),
            unit(len(picture), number + 9),
            torch.tensor(picture),
            states,
            ends,
        )
        save_rows(tmp_path / f"{name}.safetensors", rows, clip="fake#1")
        files[name] = {"pictures": count, "captions": len(picture)}
        number += 1
    manifest = {
        "clip": "fake#1",
        "dim": DIM,
        "text_dim": WORDS,
        "tokens": True,
        "files": files,
        "mean": [0.1] * DIM,
        "std": [0.5] * DIM,
    }
    (tmp_path / "embeddings.json").write_text(json.dumps(manifest))
    return tmp_path


def rows_task(
    folder: Path,
    rank: int = 0,
    world: int = 1,
    seed: int = 3,
    shuffle: int = 6,
    heldout: bool = True,
    **net: object,
) -> RowsTask:
    data = DataConfig(
        shards=["gone/train-{0..1}.tar"],
        heldout=["gone/heldout-*.tar"] * heldout,
        size=8,
        shuffle=shuffle,
        embeddings=str(folder),
    )
    recipe = PriorRecipe(
        data=data,
        stage=PriorStageConfig(net={**NET, **net}),
        train=Training(**{**SETTINGS, "out": "", "seed": seed}),
    )
    return RowsTask(recipe, Prior(recipe.stage), of_process(rank, world))


@pytest.mark.parametrize("rank, world", [(0, 1), (1, 2)])
def test_a_row_is_a_caption_with_its_picture(rank, world, embedded):
    """In an order that the seed gives, shuffled as far as the setting says; whitened by what was measured."""
    task, kept = rows_task(embedded, rank, world), Embeddings(embedded)
    n = 8 // world
    order = Order([7, 6], 6, seed_of(3, Purpose.SAMPLE, 0))
    for number, examples in enumerate(itertools.islice(task.batches(2), 3), 2):
        for k, place in enumerate(order[picture] for picture in numbers(number, n, rank, world)):
            rows, row = kept[f"train-{place[0]}"], place[1]
            owner = int(rows.picture[row])
            assert examples.keys[k] == f"train-{place[0]}-{owner}"
            torch.testing.assert_close(examples.x0[k], (rows.image[owner] - 0.1) / 0.5)
            assert torch.equal(examples.conditions["text_embed"][k], rows.text[row])
            states = examples.conditions["text"][k][examples.conditions["text_mask"][k]]
            assert torch.equal(states, rows.states(row).float())
    assert task.stage.facts == {"clip": "fake#1"} and task.order == {}


def test_another_seed_is_another_order_and_no_shuffling_is_none(embedded):
    keys = {seed: next(rows_task(embedded, seed=seed).batches(0)).keys for seed in (3, 4)}
    straight = next(rows_task(embedded, shuffle=0).batches(0)).keys
    assert keys[3] != keys[4] and straight == [f"train-0-{k}" for k in (0, 1, 1, 2, 2, 2, 3)] + ["train-1-0"]


def test_held_out_rows_validate_those_of_all_shards_alike(embedded):
    (examples,) = rows_task(embedded).validation()
    assert examples.keys == ["heldout-0-0", "heldout-0-1", "heldout-0-1"]
    assert rows_task(embedded, heldout=False).validation() == []


def test_files_that_a_window_reaches_over_stay_in_memory(embedded, monkeypatch):
    assert rows_task(embedded, shuffle=0).rows.capacity == 8
    assert rows_task(embedded, shuffle=60).rows.capacity == 18
    kept, read = Embeddings(embedded), []
    monkeypatch.setattr(
        "training.data.embeddings.load_rows", lambda path: read.append(path.stem) or path.stem
    )
    kept.capacity = 2
    for name in ("train-0", "train-1", "train-0", "heldout-0", "train-0", "train-1"):
        assert kept[name] == name
    assert read == ["train-0", "train-1", "heldout-0", "train-1"]  # the one used longest ago makes room


def test_a_memory_has_the_mean_picture_of_each_caption(embedded, monkeypatch):
    """Of pictures in different shards too; of more captions than slots, so many."""
    told = {}
    monkeypatch.setattr(Prior, "set_memory", lambda self, *pair: told.setdefault("pair", pair))
    shared = Embeddings(embedded)["train-1"]
    shared = replace(shared, captions=["train-0 1 caption 1", *shared.captions[1:]])
    save_rows(embedded / "train-1.safetensors", shared, clip="fake#1")
    rows_task(embedded, memory=50)
    text, image = told.pop("pair")
    first = Embeddings(embedded)["train-0"]
    assert len(text) == len(image) == 12
    torch.testing.assert_close(image[1], (first.image[1] + shared.image[0]) / 2)
    assert torch.equal(text[1], first.text[1]) and torch.equal(image[0], first.image[0])
    rows_task(embedded, memory=4)
    assert len(told["pair"][0]) == 4


def test_what_a_programs_data_names_decides_its_task(embedded, tmp_path, monkeypatch):
    begun = []
    for name in ("PriorTask", "RowsTask"):
        monkeypatch.setattr(prior, name, lambda *_, name=name: name)
    monkeypatch.setattr(start, "train", lambda stage, task, *_: begun.append(task))
    recipe = {
        "data": {"shards": ["a.tar"], "size": 8},
        "stage": {"net": NET},
        "train": {"out": str(tmp_path / "run"), "pictures": 8, "trackers": []},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    for more in ([], [f"data.embeddings={embedded}"]):
        forget()
        prior.main([str(tmp_path / "recipe.yaml"), *more])
    assert begun == ["PriorTask", "RowsTask"]


def test_a_clip_that_is_loaded_for_the_captions_is_that_of_the_embeddings(embedded, monkeypatch):
    path = embedded / "embeddings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokens": False}))
    monkeypatch.setattr(prior_rows, "load_clip", lambda source: Clip())
    data = DataConfig(shards=["gone/train-{0..1}.tar"], size=8, embeddings=str(embedded))
    recipe = PriorRecipe(
        clip="here", data=data, stage=PriorStageConfig(net=NET), train=Training(**{**SETTINGS, "out": ""})
    )
    examples = next(RowsTask(recipe, Prior(recipe.stage), of_process()).batches(0))
    assert examples.conditions["text"].shape == (8, 4, WORDS)
    monkeypatch.setattr(Clip, "identity", "fake#2")
    with pytest.raises(ConfigError, match="of the CLIP fake#1, but the recipe's here is fake#2"):
        RowsTask(recipe, Prior(recipe.stage), of_process())
