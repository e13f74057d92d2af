"""Shuffling: every epoch, seed, window and reader has an order of its own, and none loses a sample."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from shards import uneven

from unclip.data.lanes import Lane
from unclip.data.order import Order
from unclip.data.reading import read_shards


def epoch(order: Order, number: int) -> list[tuple[int, int]]:
    n = len(order)
    return [order[number * n + place] for place in range(n)]


@pytest.mark.parametrize(
    "counts, window",
    [([1] * 30, 1), ([30], 100), ([30], 30), ([300], 30)],
    ids=["shards", "samples", "one window", "windows"],
)
def test_epochs_and_seeds_differ(counts, window):
    """Where only shards can be shuffled, where only samples can, and in one window or many."""
    orders = [epoch(Order(counts, window, seed), number) for seed in (0, 1) for number in (0, 1, 2)]
    straight = [(shard, k) for shard, count in enumerate(counts) for k in range(count)]
    assert all(sorted(order) == straight for order in orders)
    assert not any(a == b for a, b in itertools.combinations([*orders, straight], 2))


def test_windows_begin_elsewhere_in_every_epoch_and_are_not_shuffled_alike():
    """A sample stays within its window; where those end shows in which samples never pass which."""
    starts, within = set(), []
    for number in range(12):
        places = [sample for _, sample in epoch(Order([100], 10, seed=4), number)]
        (start,) = [
            start
            for start in range(1, 11)
            if all(
                sorted(places[at : at + 10]) == [*range(at, min(at + 10, 100))]
                for at in range(start, 100, 10)
            )
        ]
        starts.add(start)
        within += [tuple(sample - at for sample in places[at : at + 10]) for at in range(start, 91, 10)]
    assert len(starts) > 4 and len(set(within)) == len(within) > 100


# What can only be read from front to back


URLS = [f"pipe:cat {number}.tar" for number in range(6)]


def test_shards_are_dealt_out_anew_in_every_epoch():
    dealt = {seed: [Lane(URLS, 0, 2, 4, seed).dealt(epoch) for epoch in range(4)] for seed in (0, 1)}
    assert dealt[0] != dealt[1] and all(any(one != epochs[0] for one in epochs) for epochs in dealt.values())
    for epoch in range(4):
        both = [url for lane in (0, 1) for url, _, _ in Lane(URLS, lane, 2, 4, 0).dealt(epoch)]
        assert sorted(both) == sorted(URLS) and both != URLS
    plain = Lane(URLS, 1, 2, 0, 0)
    assert plain.dealt(0) == plain.dealt(1) == [(url, 0, 1) for url in URLS[1::2]]
    thirds = [[Lane(URLS[:1], lane, 3, 4, 0).dealt(epoch)[0][1] for lane in range(3)] for epoch in range(3)]
    assert thirds == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]  # of one shard, each reads another third


def test_a_buffer_shuffles_otherwise_in_every_epoch_seed_and_lane(tmp_path: Path):
    """Of one shard, of which every lane here reads all."""
    (path,) = uneven(tmp_path, [12])
    found = []
    for lane, seed in ((0, 0), (1, 0), (0, 1)):
        reader = Lane([f"pipe:cat {path}"], 0, 1, 100, seed)
        reader.lane, reader.dealt = lane, lambda epoch: [(f"pipe:cat {path}", 0, 1)]
        samples = [sample["__key__"] for sample in itertools.islice(reader.samples(), 24)]
        found += [samples[:12], samples[12:]]
    straight = [f"{number:04d}" for number in range(12)]
    assert all(sorted(order) == straight for order in found)
    assert not any(a == b for a, b in itertools.combinations([*found, straight], 2))


def test_a_buffer_is_as_long_as_its_window(tmp_path: Path):
    (path,) = uneven(tmp_path, [40])
    lane = Lane([f"pipe:cat {path}"], window=20, seed=0)
    places = [int(sample["__key__"]) for sample in itertools.islice(lane.samples(), 40)]
    assert max(places[:5]) >= 15 and max(number - place for place, number in enumerate(places)) < 20


def test_shards_that_are_read_shuffled_come_in_another_order_each_epoch(tmp_path: Path):
    """A buffer of one sample shuffles nothing but the shards."""
    paths = uneven(tmp_path, [1] * 8)
    keys = [sample["key"] for sample in read_shards(paths, shuffle=1, seed=0, epochs=3)]
    first, second, third = keys[:8], keys[8:16], keys[16:]
    assert sorted(first) == sorted(second) == sorted(third) == [f"{number:04d}" for number in range(8)]
    assert first != second and second != third and first != sorted(first)
    assert first != [sample["key"] for sample in read_shards(paths, shuffle=1, seed=1)]
