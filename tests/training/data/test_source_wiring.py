"""What a source of pictures hands to its parts: seeds, processes, and every setting of the data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from shards import encoded, noise, sample, uneven
from sources import first, keys, source

from training.data import composed, shards
from training.data import source as data
from training.data.config import DataConfig
from training.data.framing import turned
from training.data.source import source_of
from training.icons.scenes import ScenesConfig
from training.streams import Purpose, numbers, seed_of
from unclip.config import ConfigError
from unclip.data.images import to_tensor
from unclip.data.reading import read_shards
from unclip.data.writing import ShardWriter
from unclip.diffusion.noise import fold


def write(folder: Path, pictures: list[Image.Image], prefix: str = "some", **record: object) -> list[Path]:
    with ShardWriter(folder, prefix) as writer:
        for number, picture in enumerate(pictures):
            writer.write(f"{prefix}-{number}", sample(number, **record) | {"png": encoded(picture)})
    return writer.paths


# Icons


class Icons:
    """Stands for ``Scenes``: takes down what it is asked, and shows what nothing else is like."""

    def __init__(self) -> None:
        self.loaded, self.asked = [], []

    def load(self, *args: object) -> Icons:
        self.loaded.append(args)
        return self

    def each(self, seeds: list[int], crop: int | None) -> SimpleNamespace:
        self.asked.append((seeds, crop))
        return SimpleNamespace(
            image=torch.stack([to_tensor(noise(4, 4, seed % 1000)) for seed in seeds]),
            caption=[f"caption {seed}" for seed in seeds],
            key=[str(s) for s in seeds],
        )


@pytest.fixture
def icons(monkeypatch: pytest.MonkeyPatch) -> Icons:
    made = Icons()
    monkeypatch.setattr(composed, "Scenes", made)
    return made


@pytest.mark.parametrize("rank, world", [(0, 1), (1, 2)])
def test_icons_are_composed_and_turned_by_seed_purpose_and_number(icons, rank, world):
    scenes = ScenesConfig(plain=0.5)
    made = source(
        [__file__],
        rank,
        world,
        kind="icons",
        size=16,
        crop=4,
        flip=0.5,
        rotate=0.75,
        only=["cat"],
        scenes=scenes,
    )
    assert icons.loaded == [([__file__], 16, scenes, ["cat"])]
    (batch,) = first(made, 8, start=5)
    mine = numbers(5, 8, rank, world)
    seeds = [seed_of(3, Purpose.SAMPLE, number) for number in mine]
    assert icons.asked == [(seeds, 4)] and batch.key == [str(seed) for seed in seeds]
    assert batch.caption == [f"caption {seed}" for seed in seeds]
    shown = [to_tensor(noise(4, 4, seed % 1000)) for seed in seeds]
    wanted = [
        turned(image, 0.5, 0.75, Random(seed_of(3, Purpose.AUGMENT, number)))
        for image, number in zip(shown, mine, strict=True)
    ]
    assert torch.equal(batch.image, torch.stack(wanted)) and not torch.equal(batch.image, torch.stack(shown))


# Which samples, and in which order


@pytest.mark.parametrize("hold", [False, True])
def test_epochs_and_seeds_have_orders_of_their_own(tmp_path, hold):
    paths = uneven(tmp_path)
    order = {seed: keys(first(source(paths, seed=seed, hold=hold, shuffle=100), 6, 6)) for seed in (0, 1)}
    epochs = [order[seed][at : at + 18] for seed in (0, 1) for at in (0, 18)]
    straight = [f"{number:04d}" for number in range(18)]
    assert all(sorted(epoch) == straight for epoch in epochs)
    assert not any(a == b for a, b in itertools.combinations([*epochs, straight], 2))


def test_seeds_turn_pictures_otherwise(tmp_path):
    """Though their order is the same."""
    paths = write(tmp_path, [noise(8, 8, number) for number in range(12)])
    made = [first(source(paths, seed=seed, shuffle=0, rotate=0.75), 12)[0] for seed in (0, 1)]
    assert made[0].key == made[1].key and not torch.equal(made[0].image, made[1].image)


def test_samples_are_shuffled_as_far_as_the_setting_says(tmp_path):
    paths = uneven(tmp_path, [60])
    for shuffle, far in ((0, 0), (5, 4), (1000, 59)):
        found = [int(key) for key in keys(first(source(paths, shuffle=shuffle), 60))]
        moved = max(abs(number - place) for place, number in enumerate(found))
        assert (moved == 0) == (shuffle == 0) and moved <= far


def test_what_is_held_is_read_once_and_the_shards_may_go(tmp_path):
    paths = uneven(tmp_path)
    held, read = (source(paths, hold=hold, max_corrupt=1.0) for hold in (True, False))
    for path in paths:
        path.unlink()
    assert len(set(keys(first(held, 6, 3)))) == 18
    with pytest.raises(data.ShardError):
        first(read, 6, 3)


def test_only_some_names_are_used(tmp_path):
    """The record's name, else the caption; in training, and where all are gone through once."""
    paths = [*uneven(tmp_path, [6]), *write(tmp_path, [noise(8, 8)] * 2, name="a cat")]
    made = source(paths, only=["picture 4", "a cat"])
    assert set(keys(first(made, 8))) == {"0004", "some-0", "some-1"}
    assert [key for _, batch in made.once(2) for key in batch.key] == ["0004", "some-0", "some-1"]
    with pytest.raises(ConfigError, match="no picture in .* is called dog"):
        source(paths, only=["picture 4", "dog"])


def test_what_is_held_is_still_cut_from_anywhere(tmp_path):
    """With random squares the whole picture is held, not the square in its middle."""
    y, x = np.mgrid[:8, :60]
    wide = Image.fromarray(np.stack([4 * x, 0 * y, 0 * y], -1).astype(np.uint8))
    paths = write(tmp_path, [wide])
    for config, least in (({}, 30.0), ({"random_crop": 1.0}, 9.0)):
        reds = [
            (batch.image[0, 0].mean().item() + 1) * 127.5 / 4
            for batch in first(source(paths, hold=True, **config), 1, 60)
        ]
        assert (min(reds) < 12 and max(reds) > 48) if config else min(reds) == max(reds)
        assert min(reds) < least


@pytest.mark.parametrize("rank, workers, first_lane", [(0, 0, 0), (1, 0, 1), (1, 3, 3)])
def test_what_is_read_through_is_dealt_to_processes_and_workers(rank, workers, first_lane, monkeypatch):
    asked: list[tuple] = []

    class Lane(SimpleNamespace):
        def __init__(self, *args: object) -> None:
            asked.append(args)
            super().__init__(lane=args[1])

        def samples(self, start: int) -> Iterator[dict]:
            return (
                sample(number) | {"__key__": str(number), "__url__": "x"} for number in itertools.count(start)
            )

    monkeypatch.setattr(shards, "Lane", Lane)
    config = DataConfig(shards=["pipe:cat a.tar"], size=8, shuffle=7, workers=workers)
    dealt, told = source_of(config, 3, rank, 2), []
    reader = dealt.reader
    dealt.reader = lambda sample, number: told.append(number) or reader(sample, number)
    batch = next(dealt.every(4, 5, workers or 1))
    lanes, lane = 2 * max(1, workers), first_lane + (5 % workers if workers else 0)
    assert asked == [(["pipe:cat a.tar"], lane, lanes, 7, fold(3))]
    start = 4 * (5 // max(1, workers))
    assert batch.key == [str(number) for number in range(start, start + 4)]
    assert told == [(lane << 40) + number for number in range(start, start + 4)]


def test_workers_are_as_many_as_the_setting_says(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(data, "fed", lambda make, start, workers: asked.append((start, workers)) or iter([]))
    first(source(uneven(tmp_path), workers=5), 4, start=2)
    assert asked == [(2, 5)]


# Held-out pictures


def test_held_out_pictures_are_cut_and_shown_as_those_of_training(tmp_path):
    """On the same background, in windows as large; in an order of their own, whatever the seed."""
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    paths = write(tmp_path, [clear] * 40)
    made = [
        source(paths, seed=seed, heldout=[str(paths[0])], crop=4, background="#ff0000").heldout(30)
        for seed in (0, 1)
    ]
    assert made[0].image.shape == (30, 3, 4, 4) and made[0].image[0, :, 0, 0].tolist() == [1, -1, -1]
    straight = [one["key"] for one in read_shards(paths)][:30]
    assert made[0].key == made[1].key != straight and len(set(made[0].key)) == 30
    assert torch.equal(made[0].image, made[1].image)
    assert source(paths).heldout(30) is None


def test_held_out_icons_have_captions_in_their_style(tmp_path, icons, monkeypatch):
    monkeypatch.setattr(composed, "styled", lambda record: f"{record['name']}, in {record['style']}")
    paths = write(tmp_path, [noise(8, 8)] * 2, name="cat", style="line")
    made = source(paths, kind="icons", heldout=[str(path) for path in paths])
    assert made.heldout(3).caption == ["cat, in line"] * 2 and icons.loaded[0][3] == []


def test_once_is_every_picture_as_it_is(tmp_path):
    """On the background asked for, whether held, whole or neither; not mirrored, and with its names."""
    clear, shown = Image.new("RGBA", (12, 8), (0, 0, 0, 0)), noise(8, 8)
    paths = write(tmp_path, [clear, shown])
    for config in ({}, {"hold": True}, {"hold": True, "random_crop": 0.5}):
        made = source(paths, background="#ff0000", flip=1.0, rotate=1.0, **config)
        ((names, batch),) = made.once(4)
        assert names == batch.caption == [one["caption"] for one in read_shards(paths)]
        assert batch.image[0, :, 0, 0].tolist() == [1, -1, -1]
        assert torch.equal(batch.image[1], to_tensor(shown))
