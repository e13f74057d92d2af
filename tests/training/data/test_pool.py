"""A pool: the scenes that would be composed anew, kept; grown, gone on with, and refused by name."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import places
import pytest
import torch
from runs import forget, same
from tiny_models import WIDTH, tiny_clip
from torch import Tensor

from training import decoder, prior
from training.data.config import DataConfig
from training.data.pool import EMBEDDINGS, FACTS, PICTURES, SAMPLES
from training.data.source import Source
from training.icons.scenes import Scenes
from training.programs import run
from unclip.checkpoint import load_checkpoint
from unclip.clip import load_clip, save_clip
from unclip.config import ConfigError
from unclip.stages import load_stage

TRAIN, HELDOUT = str(places.TRAIN), str(places.HELDOUT)


def config(folder: Path, count: int = 40, **more: object) -> DataConfig:
    return DataConfig(
        **{
            "kind": "icons",
            "shards": [TRAIN],
            "size": 16,
            "pool": {"folder": str(folder), "scenes": count},
            **more,
        }
    )


def content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (PICTURES, SAMPLES, FACTS)]


def mean_colour(image: Tensor) -> Tensor:
    """Stands for a CLIP: float [N,3,S,S] in [-1,1] -> [N,3]."""
    return image.mean((2, 3))


def test_a_pool_holds_the_scenes_that_would_be_composed(tmp_path):
    pool = Source(config(tmp_path), seed=3).pool
    new = next(Source(DataConfig(kind="icons", shards=[TRAIN], size=16), seed=3).batches(40))
    assert (pool.caption, pool.key) == (new.caption, new.key)
    assert torch.equal(pool.pictures(slice(None)), ((new.image + 1) * 127.5).round().to(torch.uint8))


def test_every_scene_is_seen_once_an_epoch_in_another_order_by_any_number_of_processes(tmp_path):
    kept = [Source(config(tmp_path), 3, rank, world) for rank, world in ((0, 1), (0, 2), (1, 2))]
    epochs = [batch.key for batch in itertools.islice(kept[0].batches(40), 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(kept[0].pool.key)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    halves = [next(source.batches(20)) for source in kept[1:]]
    assert [key for pair in zip(*(half.key for half in halves), strict=True) for key in pair] == epochs[0]
    later = next(kept[0].batches(8, start=7))
    assert later.key == [*epochs[1], *epochs[2]][16:24]
    row = kept[0].pool.key.index(later.key[0])
    shown = (later.image[0] + 1) * 127.5
    assert later.image.dtype == torch.float32 and later.caption[0] == kept[0].pool.caption[row]
    torch.testing.assert_close(shown, kept[0].pool.pictures([row])[0].float())


def test_a_kept_pool_is_read_and_not_drawn(tmp_path, monkeypatch):
    first = next(Source(config(tmp_path)).batches(8))
    monkeypatch.setattr(Scenes, "load", lambda *args: pytest.fail("the icons were loaded"))
    assert torch.equal(next(Source(config(tmp_path)).batches(8)).image, first.image)


def test_a_pool_grows_and_goes_on_where_its_making_was_cut_off(tmp_path):
    whole = Source(config(tmp_path / "whole", 700))
    Source(config(tmp_path / "grown", 300))
    grown = Source(config(tmp_path / "grown", 700))
    assert grown.pool.caption == whole.pool.caption
    assert content(tmp_path / "grown") == content(tmp_path / "whole")
    some = Source(config(tmp_path / "whole", 20))
    assert len(some.pool) == 20 and len(next(some.batches(50)).key) == 50
    Source(config(tmp_path / "cut", 300))
    for name, more in ((PICTURES, b"\1" * 1000), (SAMPLES, b'["half a li')):
        with open(tmp_path / "cut" / name, "ab") as file:
            file.write(more)  # drawn and not counted when the power went
    Source(config(tmp_path / "cut", 700))
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_embeddings_are_made_once_and_come_with_their_pictures(tmp_path):
    Source(config(tmp_path, 300)).embed("a#1", mean_colour)
    source, asked = Source(config(tmp_path, 320)), []
    source.embed("a#1", lambda image: asked.append(len(image)) or mean_colour(image))
    assert sum(asked) == 20
    batch = next(source.batches(32))
    torch.testing.assert_close(batch.embedded.image, mean_colour(batch.image), atol=2e-3, rtol=0)
    assert torch.equal(batch[:5].embedded.image, batch.embedded.image[:5])
    again = Source(config(tmp_path, 320))
    again.embed("a#1", lambda image: pytest.fail("embedded again"))
    assert torch.equal(again.embeds, source.embeds)  # to the bit, as what was read
    with pytest.raises(ConfigError, match=r"embedded by the CLIP a#1, not by b#2; name another folder"):
        source.embed("b#2", mean_colour)
    (tmp_path / EMBEDDINGS).write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="cannot be read .* delete it"):
        source.embed("a#1", mean_colour)


@pytest.mark.parametrize(("more", "seed", "reason"), [
    ({"size": 32}, 0, "size 16, not 32"),
    ({"flip": 0.5}, 0, "flip 0.0, not 0.5"),
    ({"scenes": {"pair": 1.0}}, 0, "scenes .*'pair': 0.08.*, not .*'pair': 1.0.*"),
    ({"only": ["cat"]}, 0, r"only \[\], not \['cat'\]"),
    ({}, 1, "seed 0, not 1"),
])  # fmt: skip
def test_a_pool_of_other_scenes_is_refused(tmp_path, more, seed, reason):
    Source(config(tmp_path))
    with pytest.raises(ConfigError, match=f"was made with {reason}: name another folder"):
        Source(config(tmp_path, **more), seed)


@pytest.mark.parametrize(("name", "reason"), [
    (PICTURES, "cut short"), (SAMPLES, "cut short"), (FACTS, "damaged"),
])  # fmt: skip
def test_a_pool_that_lost_something_is_refused(tmp_path, name, reason):
    Source(config(tmp_path))
    with open(tmp_path / name, "rb+") as file:
        file.truncate((tmp_path / name).stat().st_size // 2)
    with pytest.raises(ConfigError, match=f"{reason}.*delete it"):
        Source(config(tmp_path))
    (tmp_path / name).unlink()
    if name != FACTS:
        with pytest.raises(ConfigError, match="damaged.*delete it"):
            Source(config(tmp_path))


def test_only_composed_scenes_are_pooled(tmp_path):
    with pytest.raises(ConfigError, match="data.kind: icons alone"):
        Source(config(tmp_path, kind="shards"))


NET = {
    "image_size": 16,
    "channels": 16,
    "channel_mult": [1],
    "num_res_blocks": 1,
    "head_channels": 8,
    "middle_attention": False,
    "pixel_unshuffle": 2,
    "refine": 4,
    "image_embed_dim": WIDTH,
}
PROCESS = {"predicts": "x0", "shift": 0.5, "weighting": "min_snr_plus_one"}
TRAINING = {
    "pictures": 64,
    "batch_size": 16,
    "save_every": 32,
    "precision": "fp32",
    "trackers": [],
    "log_every": 16,
}


def recipe(folder: Path, name: str, stage: dict) -> str:
    path, clip = folder / f"{name}.json", tiny_clip()
    save_clip(clip, folder / "clip")
    path.write_text(
        json.dumps(
            {
                "clip": str(folder / "clip"),
                "stage": stage,
                "train": {"out": str(folder / name), **TRAINING},
                "data": config(folder / "pool", 64, heldout=[HELDOUT]).model_dump(mode="json"),
            }
        )
    )
    return str(path)


def test_a_decoder_learns_from_a_pool_and_goes_on_to_the_bit(tmp_path):
    stage = {"net": NET, "process": PROCESS, "sampling": {"steps": 2}}
    one, two = (recipe(tmp_path, name, stage) for name in ("one", "two"))
    decoder.main([one])
    decoder.main([two, "train.pictures=32", "train.decay=none"])
    forget()
    embeds = load_checkpoint(tmp_path / "pool" / EMBEDDINGS)[0]["image"]
    made = load_stage(tmp_path / "one" / "decoder.safetensors")
    torch.testing.assert_close(made.embed_mean, embeds.mean(0))
    torch.testing.assert_close(made.embed_std, embeds.std(0))
    assert made.facts["clip"] == load_clip(str(tmp_path / "clip")).identity
    assert made.schedule.at(500).log_snr < 0 and made.config.process.shift == 0.5
    decoder.main([two, "train.decay=none"])
    decoder.main([recipe(tmp_path, "three", stage), "train.decay=none"])
    assert same(tmp_path / "two", tmp_path / "three")


def test_a_prior_learns_from_a_pool_and_remembers_other_scenes_than_it_learns_from(tmp_path, monkeypatch):
    net = {"embed_dim": WIDTH, "text_dim": WIDTH, "text_length": 16, "width": 16, "layers": 1, "heads": 2}
    seen, examples = set(), prior.PriorTask._examples

    def recording(task: prior.PriorTask, bank: prior.Bank, rows: list[int]) -> object:
        seen.update(bank.caption[row] for row in rows) if bank is task.bank else None
        return examples(task, bank, rows)

    monkeypatch.setattr(prior.PriorTask, "_examples", recording)
    only = ["cat", "dog"]  # two names, so that four slots are left
    path = recipe(tmp_path, "prior", {"net": {**net, "memory": 6}, "sampling": {"steps": 2}})
    prior.main([path, f"data.only={only}", "data.heldout=[]"])
    forget()
    embeds = load_checkpoint(tmp_path / "pool" / EMBEDDINGS)[0]["image"]
    made, pool = (
        load_stage(tmp_path / "prior" / "prior.safetensors"),
        Source(config(tmp_path / "pool", 64, heldout=[HELDOUT], only=only)).pool,
    )
    torch.testing.assert_close(made.embed_mean, embeds.mean(0))
    memory = made.network.memory
    torch.testing.assert_close(memory.values[2:], made.whiten(embeds[:4]), atol=1e-4, rtol=0)
    texts = load_clip(str(tmp_path / "clip")).encode_text(pool.caption[:4]).embed
    torch.testing.assert_close(memory.keys[2:], texts, atol=1e-5, rtol=0)
    assert seen <= set(pool.caption[4:]) and len(seen) > 10


def test_a_program_refuses_a_pool_of_another_clip(tmp_path, capsys):
    Source(config(tmp_path / "pool", 64, heldout=[HELDOUT])).embed("other#1", mean_colour)
    with pytest.raises(SystemExit):
        run(lambda: decoder.main([recipe(tmp_path, "one", {"net": NET, "process": PROCESS})]))
    assert "embedded by the CLIP other#1" in capsys.readouterr().err
