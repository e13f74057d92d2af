"""Which pictures a training program sees: chosen by name, held in memory, mirrored and turned."""

from __future__ import annotations

import itertools
from random import Random

import places
import pytest
import torch

from training.data.config import DataConfig
from training.data.framing import turned
from training.data.source import Source
from unclip.config import ConfigError
from unclip.data.reading import read_shards

TRAIN, HELDOUT = str(places.TRAIN), str(places.HELDOUT)
PETS = ["cat", "cat face", "lemon"]


def source(**config: object) -> Source:
    config = {"shards": [TRAIN], "heldout": [HELDOUT], "size": 16, **config}
    return Source(DataConfig(**config), seed=3)


def names(shards: str) -> list[str]:
    return [sample["record"]["name"] for sample in read_shards(shards)]


@pytest.mark.parametrize("kind", ["icons", "shards"])
def test_only_the_named_are_used(kind):
    pets = source(kind=kind, only=PETS)

    def named(keys: list[str]) -> list[str]:
        return sorted(key.split("--")[-1].replace("-", " ") for joined in keys for key in joined.split("+"))

    once = named([key for _, batch in pets.once(8) for key in batch.key])
    assert once == sorted(name for name in names(TRAIN) if name in PETS) and set(once) == set(PETS)
    assert {name for batch in itertools.islice(pets.batches(16), 4) for name in named(batch.key)} == set(PETS)
    assert named(pets.heldout(99).key) == sorted(name for name in names(HELDOUT) if name in PETS) != []


@pytest.mark.parametrize("kind", ["icons", "shards"])
def test_a_name_that_nothing_has_is_an_error(kind):
    with pytest.raises(ValueError, match="is called fsih"):
        source(kind=kind, only=["fish", "fsih"])


def test_what_is_held_is_seen_once_an_epoch_in_a_new_order():
    held = source(hold=True)
    count = len(names(TRAIN))
    keys = [key for batch in itertools.islice(held.batches(count), 3) for key in batch.key]
    epochs = [keys[k : k + count] for k in (0, count, 2 * count)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3
    later = next(held.batches(7, start=30))
    assert later.key == keys[210:217]  # from any batch on, as if all before had been read
    assert torch.equal(later.image[0], next(source(hold=True).batches(7, 30)).image[0])


def test_records_that_are_no_icons_are_chosen_by_their_captions():
    with pytest.raises(ConfigError, match="is called a cat"):
        source(only=["a cat"])


def test_chances_of_a_mirror_and_a_turn():
    """Of a picture of four different pixels the symmetries can be told apart."""
    one = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(3, 2, 2)

    def drawn(flip: float, rotate: float) -> dict[tuple, float]:
        rng = Random(0)
        found = [tuple(turned(one, flip, rotate, rng)[0].flatten().int().tolist()) for _ in range(4000)]
        return {key: found.count(key) / len(found) for key in set(found)}

    assert turned(one, 0, 0, Random()) is one
    assert drawn(1, 0) == {(1, 0, 3, 2): 1}
    assert drawn(0.25, 0) == pytest.approx({(0, 1, 2, 3): 0.75, (1, 0, 3, 2): 0.25}, abs=0.03)
    turns = drawn(0, 0.6)
    assert turns == pytest.approx(
        {(0, 1, 2, 3): 0.4, (1, 3, 0, 2): 0.2, (3, 2, 1, 0): 0.2, (2, 0, 3, 1): 0.2}, abs=0.03
    )
    assert drawn(0.5, 0.75) == pytest.approx({key: 1 / 8 for key in drawn(0.5, 0.75)}, abs=0.03)
    assert len(drawn(0.5, 0.75)) == 8


def test_turns_belong_to_training_and_to_the_batch_number():
    plain, bent = source(hold=True), source(hold=True, flip=0.5, rotate=1.0)
    a, b = (next(s.batches(32, start=5)) for s in (plain, bent))
    assert a.key == b.key and not torch.equal(a.image, b.image)
    assert torch.equal(b.image, next(source(hold=True, flip=0.5, rotate=1.0).batches(32, start=5)).image)
    assert torch.equal(plain.heldout(9).image, bent.heldout(9).image)
    assert torch.equal(next(plain.once(9))[1].image, next(bent.once(9))[1].image)
    composed = source(kind="icons", rotate=1.0)
    assert not torch.equal(next(composed.batches(8)).image, next(source(kind="icons").batches(8)).image)
