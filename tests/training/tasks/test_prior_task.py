"""What a prior is trained on: pictures that are embedded once, or rows of embeddings made before."""

from __future__ import annotations

import itertools
from functools import partialmethod
from types import SimpleNamespace

import pytest
import torch
from number_clip import NET, Clip
from runs import SETTINGS, of_process
from shards import encoded, noise
from torch import Tensor

from training.data.config import DataConfig
from training.data.source import Source
from training.run.settings import Training
from training.streams import Purpose, numbers, seed_of
from training.tasks.prior import PriorTask
from training.tasks.recipes import PriorRecipe
from unclip.data.writing import ShardWriter
from unclip.stages import Prior, PriorStageConfig

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
