"""`training.clip` on the test shard: both ways of learning, and what its losses and vocabulary are made of.

How its runs start, stop and go on: test_training_clip_runs.py.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from places import DATA, ROOT
from runs import equal, saved

from training.clip import trainer as program
from training.clip.__main__ import main
from training.clip.losses import Head, alike, contrastive
from training.clip.pool import augment
from training.clip.recipe import ClipRecipe
from training.clip.words import article, lemmas, plural, vocabulary
from unclip.clip import load_clip
from unclip.config import ConfigError, load_config

RECIPE = f"""
model:
  embed_dim: 16
  vision_cfg: {{image_size: 32, layers: [1, 1, 1, 1], width: 8, head_width: 32}}
  text_cfg: {{context_length: 16, vocab_size: 49408, width: 16, layers: 1, heads: 2}}
data:
  kind: icons
  shards: [{DATA}/icons-64-train-000000.tar]
  heldout: [{DATA}/icons-64-heldout-000000.tar]
  size: 32
precision: fp32
unseen: {{puppy: [dog, dog face, cat]}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "clip.yaml"
    path.write_text(RECIPE + f"out: {tmp_path / 'run'}\n")
    return path


def loss_of(folder: Path, name: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "curves"))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def test_contrastive_alone(recipe, tmp_path):
    main(
        [
            str(recipe),
            "images.samples=640",
            "images.batch_size=16",
            "images.warmup=64",
            "images.learning_rate=0.003",
        ]
    )
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert 0 <= metrics["heldout_r1"] <= metrics["heldout_r5"] <= 1
    losses = loss_of(tmp_path / "run", "images/loss")
    assert losses[-1] < losses[0] - 0.2
    assert load_clip(tmp_path / "run").embed_dim == 16


@pytest.mark.bitwise
def test_with_a_teacher_and_resumed(recipe, tmp_path, monkeypatch):
    def table(parts, cache, device):
        """Every word is a random direction: what the encoder does, without its meaning."""
        generator = torch.Generator()
        rows = []
        for text in (text for part in parts for text in part):
            seeds = [sum(map(ord, word)) for word in text.split()]
            rows.append(sum(torch.randn(24, generator=generator.manual_seed(seed)) for seed in seeds))
        return F.normalize(torch.stack(rows), dim=-1).half()

    monkeypatch.setattr(program, "teacher_table", table)
    monkeypatch.setattr(program, "vocabulary_of", lambda *_: ["puppy", "a puppy", "goldfish"] * 40)
    arguments = [
        str(recipe),
        "distinct=64",
        "teacher.vocabulary=3",
        "teacher.hidden=8",
        "images.samples=64",
        "images.batch_size=32",
        "texts.batch_size=16",
    ]
    main([*arguments, "texts.samples=320"])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert set(metrics["unseen"]) == {"puppy"} and len(metrics["unseen"]["puppy"]) == 5
    images = saved(tmp_path / "run/images", "phase.pt")
    main([*arguments, "texts.samples=960"])  # goes on where it stopped
    assert equal(images, saved(tmp_path / "run/images", "phase.pt"))
    assert saved(tmp_path / "run/texts", "phase.pt")["step"] == 60
    more = json.loads((tmp_path / "run/metrics.json").read_text())
    assert more["text_cosine"] > metrics["text_cosine"]


def test_recipes(recipe, capsys):
    main([str(recipe), "images.samples=5", "--dry-run"])
    assert "samples: 5" in capsys.readouterr().out
    for override, said in (
        ("teacher.noise=0.1", "needs `distinct`"),
        ("start=there", "either `model` says"),
        ("texts.samples=5", "there is no teacher"),
        ("model=null", "either `model` says"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(ClipRecipe, recipe, ["images.samples=5", override])
    configs = ROOT / "configs"
    for name in ("clip", "icons/clip", "icons/judge", "paper/clip", "paper/noised-clip"):
        load_config(ClipRecipe, configs / f"{name}.yaml")


def test_unseen_words_are_in_no_name():
    recipe = load_config(ClipRecipe, ROOT / "configs/icons/clip.yaml")
    names = (DATA / "names.txt").read_text().split("\n")
    assert len(recipe.unseen) >= 60
    assert not [word for word in recipe.unseen for name in names if word in name.split()]


def test_contrastive_against_its_definition():
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(5, 4), dim=-1) for _ in range(2))
    logits = 10 * image @ text.T
    plain = -(logits.log_softmax(1).diag().mean() + logits.log_softmax(0).diag().mean()) / 2
    assert torch.allclose(contrastive(image, text, torch.tensor(10.0), torch.eye(5)), plain)
    same = torch.eye(5)
    same[0, 1] = same[1, 0] = 0.5  # two of one name share their probability
    target = same.clone()
    target[0], target[1] = torch.tensor([2, 1, 0, 0, 0]) / 3, torch.tensor([1, 2, 0, 0, 0]) / 3
    shared = -((target * logits.log_softmax(1)).sum() + (target * logits.T.log_softmax(1)).sum()) / 10
    assert torch.allclose(contrastive(image, text, torch.tensor(10.0), same), shared)


def test_what_is_alike():
    """1 for equal captions, a share for equal names, of one's own samples against those of all."""
    every = torch.tensor([[7, 0], [8, 1], [7, 2], [9, 1]])  # caption, name
    found = alike(every[:2], every, 0.5)
    assert found.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0.5]]


def test_contrastive_in_parts_is_that_of_the_whole():
    """The mean over equal parts of a batch, each against all of it."""
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 4), dim=-1) for _ in range(2))
    same = torch.eye(6) + 0.5 * torch.eye(6).flip(0)
    scale = torch.tensor(10.0)
    parts = [
        contrastive(image[rows], text[rows], scale, same[rows], image, text)
        for rows in (slice(0, 3), slice(3, 6))
    ]
    assert torch.allclose(torch.stack(parts).mean(), contrastive(image, text, scale, same))


def test_head_starts_as_principal_directions():
    torch.manual_seed(0)
    known = torch.randn(200, 6) * torch.tensor([5.0, 3, 1, 0.1, 0.1, 0.1]) + 2
    head = Head(known, 3, hidden=4)
    raw = F.linear(known, head.weight, head.bias)
    covariance = torch.cov(raw.T)
    assert raw.mean(0).abs().max() < 1e-4
    assert (covariance - covariance.diag().diag()).abs().max() < 0.02
    assert torch.allclose(head(known), F.normalize(raw, dim=-1), atol=1e-6)


def test_augment_is_seeded_and_small():
    torch.manual_seed(0)
    images = F.interpolate(torch.rand(4, 3, 4, 4), 32, mode="bilinear") * 2 - 1
    a, b = (augment(images, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)
    assert 0 < (a - images).abs().mean() < 0.4


def test_vocabulary(tmp_path):
    index = tmp_path / "index.sense"
    index.write_text(
        "".join(
            f"{sense} 0 1 {count}\n"
            for sense, count in (
                ("goldfish%1:05:00::", 0),
                ("red_fox%1:05:00::", 1),
                ("xylo_fox%1:05:00::", 1),
                ("happy%3:00:00::", 5),
                ("axe%1:06:00::", 2),
                ("grudge%1:12:00::", 1),
            )
        )
    )
    assert lemmas(index) == (["goldfish", "red fox", "xylo fox", "axe"], ["happy", "grudge"])
    texts = vocabulary(["dog"], {"dog", "goldfish", "red", "fox", "axe", "happy"}, index, 60)
    assert texts == vocabulary(["dog"], {"dog", "goldfish", "red", "fox", "axe", "happy"}, index, 60)
    assert {"dog", "goldfish", "a goldfish", "red fox", "an axe", "happy"} <= set(texts)
    assert not any("xylo" in text or "grudge" in text for text in texts)
    assert len(set(texts)) == len(texts) <= 60
    assert [plural(w) for w in ("puppy", "box", "day", "car")] == ["puppies", "boxes", "days", "cars"]
    assert article("owl") == "an owl"
