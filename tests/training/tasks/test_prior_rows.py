"""A prior's training from rows of embeddings that were made before."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from number_clip import DIM, NET, WORDS, Clip
from runs import SETTINGS, forget, of_process
from torch import Tensor

from training import prior
from training.data.config import DataConfig
from training.data.embeddings import Embeddings, Rows, save_rows
from training.run.settings import Training
from training.streams import Purpose, numbers, seed_of
from training.tasks import prior_rows, start
from training.tasks.prior_rows import RowsTask
from training.tasks.recipes import PriorRecipe
from unclip.config import ConfigError, parse_config
from unclip.data.order import Order
from unclip.stages import ARPrior, ARPriorStageConfig, Prior, PriorStageConfig


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


def test_codes_are_measured_on_the_first_captions_with_their_pictures(embedded):
    recipe = rows_task(embedded).recipe
    net = {**NET, "components": 3, "buckets": 9, "similarities": 2}
    stage = ARPrior(ARPriorStageConfig(net=net))
    task = RowsTask(recipe, stage, of_process())
    rows = [Embeddings(embedded)[name] for name in ("train-0", "train-1")]
    pairs = torch.cat([part.text for part in rows]), torch.cat([part.image[part.picture] for part in rows])
    wanted = ARPrior(stage.config)
    wanted.set_statistics(torch.full((DIM,), 0.1), torch.full((DIM,), 0.5))
    wanted.set_codes(*pairs)
    for name in ("basis", "low", "width", "similarity"):
        assert torch.equal(getattr(stage, name), getattr(wanted, name)), name
    few = task._pairs(9)
    assert all(torch.equal(part, whole[:9]) for part, whole in zip(few, pairs, strict=True))


@pytest.mark.attack
@pytest.mark.parametrize("stage, said", [
    ({"kind": "diffusion"}, "stage: .*kind is prior or prior-ar, not diffusion"),
    ({"kind": ["prior"]}, "stage: .*kind is prior or prior-ar, not "),
    ({"kind": "prior-ar", "net": NET}, "stage.net.components: Field required"),
    ({"net": {**NET, "components": 3}}, "stage.net.components: unknown key"),
    (3, "stage: Input should be a valid dictionary"),
])  # fmt: skip
def test_a_recipe_is_of_the_prior_that_its_kind_names(stage, said):
    values = {"data": {"shards": ["a"], "size": 8}, "train": {**SETTINGS, "out": "x"}, "stage": stage}
    with pytest.raises(ConfigError, match=said):
        parse_config(PriorRecipe, values)
    recipe = parse_config(PriorRecipe, {**values, "stage": {"net": NET}})
    assert isinstance(recipe.stage, PriorStageConfig)


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
