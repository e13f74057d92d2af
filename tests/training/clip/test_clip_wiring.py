"""What `training.clip` hands to its parts: batches by number, losses, and the steps of a phase."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_clip
from torch import Tensor, nn

from training.clip import losses as clip_parts
from training.clip import trainer as program
from training.clip.batches import ClipBatch, ContrastBatches, DistilBatches, Noiser
from training.clip.losses import ClipContrast, Distil, Head, NoisedContrast, alike, contrastive
from training.clip.pool import augment
from training.data.pool import Pool
from training.streams import Purpose, numbers, seed_of, streams
from unclip.diffusion.noise import randn
from unclip.guides.noised_clip import NoisedClip, NoisedClipStageConfig

NOISED = {
    "net": {
        "embed_dim": 8,
        "image": {"width": 16, "layers": 1, "heads": 2},
        "image_size": 8,
        "patch_size": 4,
        "timesteps": 50,
        "text": {"width": 16, "layers": 1, "heads": 2},
        "vocab_size": 99,
        "length": 6,
        "logit_scale": 20.0,
    }
}
ALONE = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))


# Batches


POOL = Pool(
    Path(),
    np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), dtype=np.uint8),
    [f"caption {row}" for row in range(9)],
    [f"{row}--name {row % 3}" for row in range(9)],
)


def recipe(**more: object) -> SimpleNamespace:
    return SimpleNamespace(**{"seed": 5, "augment": False, "noised": None, **more})


def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
    return torch.tensor([[int(text.split()[1])] for text in texts]), torch.ones(len(texts), 1).bool()


def batch_of(made: SimpleNamespace, vectors: Tensor | None = None) -> tuple[ClipBatch, list[int]]:
    """The batch number 2 of 4 samples of the second of two processes, and the rows of the pool in it."""
    process = SimpleNamespace(process_index=1, num_processes=2, device=torch.device("cpu"))
    batch = next(ContrastBatches(made, tokenize, None, process, POOL, vectors)(4, 2))
    return batch, [seed_of(5, Purpose.SAMPLE, number) % 9 for number in numbers(2, 4, 1, 2)]


def test_a_sample_of_a_pool_is_a_row_that_its_number_gives():
    batch, rows = batch_of(recipe())
    (image,), (ids, mask), facts = batch.inputs
    assert torch.equal(image, POOL.pictures(rows).float() / 127.5 - 1) and batch.keys == [*map(str, rows)]
    assert ids[:, 0].tolist() == rows and mask.all() and facts[:, 1].tolist() == [row % 3 for row in rows]
    assert len(set(facts[:, 0].tolist())) == len(set(rows)) > 1


def test_pictures_are_changed_and_noised_by_streams_of_their_own():
    mine, (plain, _) = numbers(2, 4, 1, 2), batch_of(recipe())
    shown = plain.inputs[0][0]
    changed = batch_of(recipe(augment=True))[0].inputs[0][0]
    assert torch.equal(changed, augment(shown, streams(5, Purpose.AUGMENT, mine)))
    assert (changed - shown).abs().mean() > 0.01
    config = NoisedClipStageConfig(**NOISED)
    image, t = batch_of(recipe(noised=config))[0].inputs[0]
    wanted, level = Noiser(config)(shown, streams(5, Purpose.LOSS, mine))
    assert torch.equal(image, wanted) and torch.equal(t, level)


def test_a_teachers_vectors_are_those_of_the_rows_with_noise_of_its_length():
    vectors = torch.randn(9, 400, generator=torch.Generator().manual_seed(1)).half()
    for length in (0.0, 0.3):
        batch, rows = batch_of(recipe(teacher=SimpleNamespace(noise=length)), vectors=vectors)
        (said,) = batch.inputs[1]
        assert (said - vectors[rows].float()).norm(dim=1).tolist() == pytest.approx([length] * 4, rel=0.1)
    noise = randn((4, 400), "cpu", streams(5, Purpose.AUGMENT, numbers(2, 4, 1, 2)))
    torch.testing.assert_close(said, vectors[rows].float() + 0.3 * noise / 20)


def test_streamed_samples_are_alike_by_their_captions_alone():
    """No two pictures have a name in common."""
    made = SimpleNamespace(image=torch.zeros(3, 3, 8, 8), caption=["a 1", "a 1", "b 2"], key=["x", "y", "z"])
    source = SimpleNamespace(batches=lambda n, start: iter([made] * (n == 3 and start == 7)))
    batch = next(ContrastBatches(recipe(), tokenize, source, ALONE)(3, 7))
    facts = batch.inputs[2]
    assert alike(facts, facts, 0.5).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert facts[:, 1].tolist() == [21, 22, 23] and batch.keys == ["x", "y", "z"]


def test_texts_are_drawn_by_seed_and_number_and_shared_out():
    """Of much the same length, now short, now long; what two processes have is what one would have."""
    length = torch.arange(1, 201) % 20 + 1
    mask = torch.arange(20)[None] < length[:, None]
    columns = torch.arange(200)[:, None].expand(200, 20), mask, torch.arange(200)[:, None].float()

    def rows(n: int, start: int = 0, rank: int = 0, world: int = 1, seed: int = 5) -> list[list[str]]:
        process = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))
        return [batch.keys for batch in islice(DistilBatches(*columns, seed, process)(n, start), 12)]

    whole = rows(8)
    for one, *two in zip(whole, rows(4, world=2), rows(4, rank=1, world=2), strict=True):
        assert one[::2] == two[0] and one[1::2] == two[1]
    assert rows(8, 3)[:9] == whole[3:] and len({*map(tuple, whole)}) == 12 and rows(8, seed=6) != whole
    lengths = [length[[*map(int, keys)]].tolist() for keys in whole]
    assert all(max(some) - min(some) <= 4 for some in lengths)
    assert min(map(max, lengths)) < 8 and max(map(min, lengths)) > 13
    batch = next(DistilBatches(*columns, 5, ALONE)(8, 0))
    ids, _, goal = batch.inputs
    assert ids[:, 0].tolist() == goal[:, 0].tolist() == [*map(int, batch.keys)]


# Losses


def unit(n: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def joined(monkeypatch: pytest.MonkeyPatch, rank: int, n: int, wholes: list[Tensor]) -> None:
    """As if in one of two processes, with n rows each, which hold these rows together."""

    def gather(rows: Tensor) -> Tensor:
        (whole,) = [
            whole
            for whole in wholes
            if whole.shape[1:] == rows.shape[1:]
            and torch.allclose(whole[rank * n :][:n].float(), rows.float(), atol=1e-6)
        ]
        return whole

    monkeypatch.setattr(clip_parts, "gather", gather)
    monkeypatch.setattr(clip_parts.dist, "get_rank", lambda: rank)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_text_is_to_find_its_own_goal_among_those_of_all_processes(rank, monkeypatch):
    goals, said, mine = unit(6, 5, 0), unit(3, 5, 1), slice(3 * rank, 3 * rank + 3)
    joined(monkeypatch, rank, 3, [goals])
    towers = nn.Module()
    towers.text = lambda ids, mask: (2 * said, None)
    loss = Distil(SimpleNamespace(towers=towers))(None, None, goals[mine])
    near = (20 * said @ goals.T).log_softmax(1)[:, mine].diag()
    torch.testing.assert_close(loss, (1 - (said * goals[mine]).sum(1)).mean() - 0.1 * near.mean())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("scale", [2.0, 9.0])
def test_pictures_and_captions_are_told_from_those_of_all_processes(rank, scale, monkeypatch):
    """By the logarithm of a scale of 100 at most, and sharing with those of the same name."""
    image, text = unit(6, 5, 2), unit(6, 5, 3)
    facts = torch.stack([torch.arange(6), torch.tensor([0, 1, 0, 1, 0, 0])], 1)
    part = clip_parts.Contrast(0.25)
    mine = slice(3 * rank, 3 * rank + 3)
    joined(monkeypatch, rank, 3, [image, text, facts])
    part.gather = clip_parts.gather
    loss = part.loss(3 * image[mine], text[mine], torch.tensor(scale), facts[mine])
    wanted = contrastive(
        image[mine],
        text[mine],
        torch.tensor(math.exp(scale)).clamp(max=100),
        alike(facts[mine], facts, 0.25),
        image,
        text,
    )
    torch.testing.assert_close(loss, wanted)


def test_a_noised_clip_is_fed_as_the_denoiser_is_and_learns_its_scale():
    """The network's first level is 0."""
    clip = NoisedClip(NoisedClipStageConfig(**NOISED))
    made = NoisedContrast(clip, 0.25)
    assert made.share == 0.25 and made.scale.exp().item() == pytest.approx(20.0)
    asked = []
    clip.network.image.forward = lambda x, t: asked.append(t.tolist()) or F.one_hot(t, 8) + 0.5
    clip.network.text.forward = lambda *texts: torch.eye(8)[:2]
    facts = torch.tensor([[0, 0], [1, 1]])
    made((torch.zeros(2, 3, 8, 8), torch.tensor([1, 2])), (None, None), facts).backward()
    assert asked == [[0, 1]] and made.scale.grad.item() != 0


def test_a_new_clip_takes_pictures_as_the_recipe_says():
    towers = {"embed_dim": 8, "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1,
              "head_width": 8}, "text_cfg": {"width": 16, "layers": 1, "heads": 2}}  # fmt: skip
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    made = program.model_of(SimpleNamespace(noised=None, start=None, model=towers, mean=mean, std=std))
    assert made.mean.flatten().tolist() == pytest.approx(mean)
    assert made.std.flatten().tolist() == pytest.approx(std)


def test_a_clips_scale_is_learnt():
    made = ClipContrast(tiny_clip().requires_grad_(True), None, 0.5)
    ids, mask = tiny_clip().tokenize(["a cat", "a dog"])
    made((torch.rand(2, 3, 16, 16) * 2 - 1,), (ids, mask), torch.tensor([[0, 0], [1, 1]])).backward()
    assert made.towers.model.logit_scale.grad.item() != 0


@pytest.mark.parametrize("teacher", [False, True])
def test_the_recipe_reaches_the_loss(teacher):
    """A head starts from the captions that pictures have, not from all that the teacher knows."""
    made = program.Trainer.__new__(program.Trainer)
    made.clip, made.table, made.row = tiny_clip(), None, torch.tensor([0, 1, 2, 1, 0, 3])
    made.recipe = SimpleNamespace(same=0.2, teacher=SimpleNamespace(hidden=7))
    if teacher:
        made.table = torch.randn(30, 24, generator=torch.Generator().manual_seed(0)).half()
    loss = made._contrast()
    assert isinstance(loss, ClipContrast) and loss.share == 0.2 and (loss.head is not None) == teacher
    if teacher:
        known = Head(made.table[:4].float(), 16, 7)
        assert torch.equal(loss.head.weight, known.weight) and torch.equal(loss.head.bias, known.bias)
        assert loss.head.bend[0].out_features == 7
    made.clip = NoisedClip(NoisedClipStageConfig(**NOISED))
    assert isinstance(made._contrast(), NoisedContrast) and made._contrast().share == 0.2
