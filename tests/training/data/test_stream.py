"""Streaming: every sample once an epoch, whoever reads; the same from any batch on; what breaks is told."""

from __future__ import annotations

import gzip
import itertools
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from places import TRAIN
from shards import encoded, noise, sample, uneven
from sources import first, keys, source

from training.data import reader
from unclip.config import ConfigError
from unclip.data.lanes import Lane
from unclip.data.order import Order
from unclip.data.pictures import open_picture
from unclip.data.reading import ShardError, stream
from unclip.data.writing import ShardWriter

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


# The order


@pytest.mark.parametrize("window", [0, 1, 4, 7, 100])
@pytest.mark.parametrize("counts", [[18], [5, 9, 4], [0, 3, 0, 1], [1] * 9])
def test_an_epoch_is_every_sample_once(counts, window):
    order, n = Order(counts, window, seed=2), sum(counts)
    epochs = [[order[epoch * n + k] for k in range(n)] for epoch in range(4)]
    straight = [(shard, k) for shard, count in enumerate(counts) for k in range(count)]
    assert all(sorted(epoch) == straight for epoch in epochs)
    if window == 0:
        assert epochs[0] == epochs[1] == straight
    elif window > 1 and n > 9:
        assert epochs[0] != epochs[1] and straight not in epochs
    backwards = [order[place] for place in reversed(range(4 * n))]
    assert backwards[::-1] == [place for epoch in epochs for place in epoch]  # nothing is remembered


def test_an_order_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no sample"):
        Order([0, 0], 4)


def test_shuffling_reaches_as_far_as_its_window():
    order = Order([1000], window=100, seed=1)
    far = [abs(order[place][1] - place) for place in range(1000)]
    assert 20 < sum(far) / 1000 < 50 and max(far) < 100


# Three shards, two processes, three workers


@pytest.mark.parametrize("workers", [0, 3])
def test_uneven_shards_are_seen_once_by_two_processes(tmp_path, workers):
    paths = uneven(tmp_path)
    ranks = [source(paths, rank, 2, workers=workers) for rank in (0, 1)]
    seen = [first(rank, 3, 6) for rank in ranks]  # 2 processes x 6 batches of 3: two epochs of 18
    for epoch in (0, 1):
        found = keys(seen[0][3 * epoch : 3 * epoch + 3]) + keys(seen[1][3 * epoch : 3 * epoch + 3])
        assert sorted(found) == [f"{number:04d}" for number in range(18)]
    assert ranks[0].order == {}


def test_workers_and_processes_change_nothing(tmp_path):
    """One process with batches of 6 sees in a step what two with batches of 3 see, cut and turned alike."""
    config = {"size": 6, "random_crop": 0.5, "crop": 4, "flip": 0.5, "rotate": 0.5}
    with ShardWriter(tmp_path, "noise", 7) as writer:
        for number in range(20):
            writer.write(f"{number:04d}", {"png": encoded(noise(9, 12, number)), "txt": b"noise"})
    alone = first(source(writer.paths, **config), 6, 5)
    two = [first(source(writer.paths, rank, 2, **config), 3, 5) for rank in (0, 1)]
    fed = first(source(writer.paths, workers=2, **config), 6, 5)
    for step, (batch, again) in enumerate(zip(alone, fed, strict=True)):
        assert batch.key == again.key and torch.equal(batch.image, again.image)
        both = dict(
            zip(
                keys([two[0][step], two[1][step]]),
                torch.cat([two[0][step].image, two[1][step].image]),
                strict=True,
            )
        )
        assert both.keys() == set(batch.key)
        assert all(torch.equal(both[key], image) for key, image in zip(batch.key, batch.image, strict=True))
    assert len({tuple(image.flatten().tolist()) for batch in alone for image in batch.image}) == 30


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_from_any_batch_without_decoding_those_before(tmp_path, workers, monkeypatch):
    made = partial(source, uneven(tmp_path), random_crop=0.5, workers=workers)
    whole = first(made(), 4, 12)
    opened = []
    monkeypatch.setattr(reader, "open_picture", lambda *a, **kw: opened.append(1) or open_picture(*a, **kw))
    rest = first(made(), 4, 2, start=10)
    assert keys(rest) == keys(whole[10:])
    assert all(torch.equal(a.image, b.image) for a, b in zip(whole[10:], rest, strict=True))
    assert len(opened) == (8 if workers == 0 else 0)  # with workers it is they who decode


def test_icons_are_composed_alike_by_any_processes():
    shards = [TRAIN]
    made = partial(source, shards, kind="icons", size=16, flip=0.5)
    alone = first(made(), 6, 2)
    two = [first(made(rank=rank, world=2, workers=rank), 3, 2) for rank in (0, 1)]
    for step in (0, 1):
        mixed = torch.stack([two[0][step].image, two[1][step].image], 1).flatten(0, 1)
        assert torch.allclose(mixed, alone[step].image, atol=1e-6)
        assert alone[step].key[::2] == two[0][step].key and alone[step].caption[1::2] == two[1][step].caption


# What can only be read from front to back


def through(paths: list[Path]) -> list[str]:
    return [f"pipe:cat {path}" for path in paths]


def lanes(urls: list[str], count: int, **more: object) -> list[Lane]:
    return [Lane(urls, lane, count, **more) for lane in range(count)]


@pytest.mark.parametrize("count, shards", [(1, 3), (2, 3), (6, 3), (7, 2), (3, 3), (5, 1)])
def test_lanes_deal_every_sample_to_one_reader(tmp_path, count, shards):
    urls = through(uneven(tmp_path, (5, 9, 4)[:shards]))
    total = [f"{number:04d}" for number in range((5, 14, 18)[shards - 1])]
    every = lanes(urls, count, window=4, seed=1)
    for epoch in (0, 1):
        seen = [[s["__key__"] for s in lane._epoch(epoch)] for lane in every]
        assert sorted(itertools.chain(*seen)) == total
    for lane in every:  # with and without knowing how long the shards are
        for again in (lane, Lane(urls, lane.lane, count, 4, 1)):
            whole = [s["__key__"] for s in itertools.islice(lane.samples(), 14)]
            assert [s["__key__"] for s in itertools.islice(again.samples(9), 5)] == whole[9:]


def test_uneven_urls_are_dealt_to_processes_and_workers(tmp_path):
    """3 shards, 2 processes, 3 workers: 6 lanes, of which each yields every third batch of its process."""
    urls = through(uneven(tmp_path, (6, 6, 6)))
    made = partial(source, urls, world=2, workers=3)
    seen = [first(made(rank), 3, 3) for rank in (0, 1)]
    assert sorted(keys(seen[0]) + keys(seen[1])) == [f"{number:04d}" for number in range(18)]
    rest = first(made(1), 3, 4, start=2)
    assert rest[0].key == seen[1][2].key
    assert made().order == {"processes": 2, "workers": 3}
    long = first(made(1), 3, 12)
    assert keys(long)[6:18] == keys(rest)


class Flaky(SimpleHTTPRequestHandler):
    """Serves a folder; breaks off in the middle of a file that is asked for the first time."""

    broken: set[str] = set()

    def do_GET(self):
        if self.path in self.broken:
            return super().do_GET()
        self.broken.add(self.path)
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])

    def log_message(self, *_):
        pass


def test_a_url_that_breaks_off_goes_on_where_it_was(tmp_path):
    (path,) = uneven(tmp_path, [9])
    Flaky.broken.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Flaky, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        found = list(stream(url, waits=(0.0,)))
        assert [s["__key__"] for s in found] == [f"{number:04d}" for number in range(9)]
        assert all({"png", "txt"} <= s.keys() for s in found)
        *_, last = stream(f"{url}-is-not-here", waits=())
        assert "__error__" in last
    finally:
        server.shutdown()
        server.server_close()


def test_compressed_tars_are_read_from_front_to_back(tmp_path):
    (path,) = uneven(tmp_path, [6])
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    made = source([packed])
    assert made.order == {"processes": 1, "workers": 0}
    assert sorted(keys(first(made, 3, 2))) == [f"{number:04d}" for number in range(6)]


def test_urls_that_hold_nothing_are_an_error(tmp_path):
    (tmp_path / "empty.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(ShardError, match="no sample can be read"):
        first(source([f"pipe:cat {tmp_path}/empty.tar"]), 2, 1)
    with pytest.raises(ShardError, match="no sample can be read"):
        source([tmp_path / "empty.tar"])


# What cannot be read


def spoiled(folder: Path, bad: set[int], count: int = 20) -> list[Path]:
    with ShardWriter(folder, "spoiled", 8) as writer:
        for number in range(count):
            files = sample(number)
            if number in bad:
                files["png"] = files["png"][:45]
            writer.write(f"{number:04d}", files)
    return writer.paths


@pytest.mark.parametrize("url", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_sample_is_skipped_counted_and_named(tmp_path, url, workers, capsys):
    paths = spoiled(tmp_path, {7})
    made = source(through(paths) if url else paths, workers=workers)
    batches = first(made, 4, 20)
    told = capsys.readouterr().err
    found = Counter(keys(batches))
    assert "0007" not in found and len(found) == 19 and all(len(batch.key) == 4 for batch in batches)
    assert told.count("skipped 0007: ") == 1 and made.corrupt.keys() == {"0007"}
    assert made.corrupt["0007"] in (3, 4, 5)
    assert made.seen == 80


@pytest.mark.parametrize("url", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_corrupt_samples_end_the_run(tmp_path, url, workers):
    paths = spoiled(tmp_path, {3, 4, 5, 6})
    made = source(through(paths) if url else paths, workers=workers, max_corrupt=0.001)
    with pytest.raises(ShardError, match="cannot be read .*more than data.max_corrupt 0.001; look with"):
        first(made, 4, 20)
    assert len(first(source(paths, max_corrupt=0.5), 4, 20)) == 20


def test_all_corrupt_is_an_error_not_a_search_for_ever(tmp_path):
    with pytest.raises(ShardError, match="no sample can be read"):
        first(source(spoiled(tmp_path, set(range(20))), max_corrupt=1.0), 4, 1)


def test_a_shard_that_changes_while_it_is_read_is_told(tmp_path, capsys):
    paths = uneven(tmp_path)
    made = source(paths, max_corrupt=1.0)
    paths[0].unlink()
    assert len(set(keys(first(made, 6, 6)))) == 13
    assert "the shard has changed or cannot be read" in capsys.readouterr().err


def test_a_mistake_in_a_worker_is_one_message(tmp_path):
    paths = uneven(tmp_path, **{"class": "seven"})
    with pytest.raises(ConfigError, match="^the class of .* is 'seven'; it must be an integer"):
        first(source(paths, workers=2), 4, 1)
