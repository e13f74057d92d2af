"""A kind of training pictures is one class: here is one, in no other file, and all that serves it then."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runs import forget, same
from shards import uneven

from training import decoder
from training.data import source as data
from training.data.config import DataConfig
from training.data.kinds import Pictures
from training.data.source import Source
from training.streams import Purpose, numbers, seed_of
from unclip.config import ConfigError
from unclip.data.batches import Batch
from unclip.data.images import to_tensor
from unclip.data.reading import read_shards


class Stripes(Pictures):
    """Upright stripes of a width that is drawn."""

    def __init__(self, config: DataConfig, seed: int, rank: int, world: int) -> None:
        self.size, self.seed, self.rank, self.world = config.size, seed, rank, world

    def striped(self, widths: list[int]) -> Batch:
        across = torch.arange(self.size)
        image = torch.stack([(across // width % 2).expand(3, self.size, -1) * 2.0 - 1 for width in widths])
        return Batch(image, [f"stripes of {width}" for width in widths], [str(width) for width in widths])

    def every(self, n: int, first: int, step: int) -> Iterator[Batch]:
        for k in itertools.count(first, step):
            mine = numbers(k, n, self.rank, self.world)
            yield self.striped([1 + seed_of(self.seed, Purpose.SAMPLE, number) % 4 for number in mine])

    def once(self, n: int) -> Iterator[tuple[list[str], Batch]]:
        batch = self.striped([1, 2, 3, 4])
        yield batch.caption, batch


@pytest.fixture(autouse=True)
def stripes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(data.KINDS, "stripes", Stripes)
    forget()
    yield
    forget()


def config(**more: object) -> DataConfig:
    return DataConfig(**{"kind": "stripes", "shards": [], "size": 8, **more})


def test_its_batches_are_those_of_any_processes_and_workers():
    alone = [*itertools.islice(Source(config(), 3).batches(6), 3)]
    by_workers = [*itertools.islice(Source(config(workers=2), 3).batches(6), 3)]
    ranks = [[*itertools.islice(Source(config(), 3, rank, 2).batches(3), 3)] for rank in (0, 1)]
    for batch, again, *halves in zip(alone, by_workers, *ranks, strict=True):
        both = [key for pair in zip(halves[0].key, halves[1].key, strict=True) for key in pair]
        assert batch.key == again.key == both
        assert torch.equal(batch.image, again.image) and torch.equal(batch.image[::2], halves[0].image)
    assert len({key for batch in alone for key in batch.key}) > 2
    assert Source(config()).order == Source(config()).listing == {} and Source(config()).scenes is None
    assert [names for names, _ in Source(config()).once(9)] == [[f"stripes of {k}" for k in (1, 2, 3, 4)]]


def test_it_can_be_pooled(tmp_path):
    pool = {"folder": str(tmp_path / "pool"), "scenes": 20}
    pooled, new = Source(config(pool=pool), 3), next(Source(config(), 3).batches(20))
    assert pooled.pool.caption == new.caption
    batch = next(pooled.batches(20))
    assert sorted(batch.key) == sorted(new.key) and set(batch.image.flatten().tolist()) == {-1.0, 1.0}
    assert next(pooled.once(9))[0] == next(Source(config()).once(9))[0]
    with pytest.raises(ConfigError, match="kind 'stripes', not None"):  # of icons, none is kept
        monkey = config(pool=pool, kind="icons", shards=["x"])
        Source(monkey, 3)


def test_it_has_heldout_pictures_out_of_shards(tmp_path):
    (path,) = uneven(tmp_path, [3])
    held = Source(config(heldout=[str(path)])).heldout(5)
    wanted = {one["caption"]: to_tensor(one["image"]) for one in read_shards(path)}
    assert set(held.caption) == set(wanted) and torch.equal(held.image[0], wanted[held.caption[0]])


def test_a_kind_that_there_is_not_is_refused_by_name():
    with pytest.raises(ConfigError, match="data.kind is 'spots'; there are icons, shards, stripes"):
        Source(config(kind="spots"))


NET = {
    "image_size": 8,
    "channels": 16,
    "channel_mult": [1],
    "num_res_blocks": 1,
    "head_channels": 8,
    "middle_attention": False,
}


def test_a_program_trains_on_it_and_goes_on_to_the_bit(tmp_path):
    def run(name: str, *overrides: str) -> Path:
        train = {"out": str(tmp_path / name), "pictures": 32, "batch_size": 8, "save_every": 16}
        train |= {"precision": "fp32", "trackers": [], "log_every": 8, "warmup": 0, "decay": "none"}
        path = tmp_path / f"{name}.json"
        stage = {"net": NET, "process": {"predicts": "v"}, "sampling": {"steps": 2}}
        path.write_text(
            json.dumps({"stage": stage, "train": train, "data": config().model_dump(mode="json")})
        )
        forget()
        decoder.main([str(path), *overrides])
        return tmp_path / name

    whole = run("whole")
    run("parts", "train.pictures=16")
    assert same(run("parts"), whole)


def test_the_files_that_are_learnt_from_are_listed_with_their_bytes(tmp_path):
    paths = [str(path) for path in uneven(tmp_path)]
    url = f"pipe:cat {paths[1]}"
    for hold in (False, True):
        shards = DataConfig(shards=paths[:1] + [url], size=8, hold=hold)
        assert Source(shards).listing == {paths[0]: Path(paths[0]).stat().st_size, url: None}
    assert Source(DataConfig(shards=paths, size=8)).listing.keys() == set(paths)
