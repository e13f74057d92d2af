"""Pictures beyond a network's size: tiles cover them evenly, agree where they can, and show no border."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from unclip.diffusion.denoiser import Prediction
from unclip.diffusion.noise import Noise
from unclip.diffusion.samplers import SAMPLERS
from unclip.diffusion.schedule import make_schedule, step_list
from unclip.diffusion.tiles import Tiles, places

SCHEDULE = make_schedule("cosine", 1000)


def local(x: torch.Tensor, t: torch.Tensor) -> Prediction:
    """A network that looks at each pixel alone, which no cut can change; its variance is learned."""
    return Prediction.from_x0(x, (2 * x).tanh(), SCHEDULE.at(t), x.sigmoid())


def torn(x: torch.Tensor, t: torch.Tensor) -> Prediction:
    """One that takes every tile for another grey, by what is in it: as far apart as tiles can be."""
    grey = (1000 * x.mean((1, 2, 3), keepdim=True)).sin()
    return Prediction.from_x0(x, grey.expand_as(x), SCHEDULE.at(t))


@pytest.mark.parametrize("length, side", [(64, 64), (65, 64), (96, 64), (112, 64), (500, 64), (7, 3), (9, 1)])
def test_tiles_cover_a_length_and_each_other_by_a_quarter(length, side):
    starts = places(length, side)
    assert starts[0] == 0 and starts[-1] == length - side
    steps = [b - a for a, b in pairwise(starts)]
    assert all(0 < step <= side - side // 4 for step in steps)
    assert not steps or max(steps) - min(steps) <= 1  # evenly
    fewer = len(starts) - 2  # steps of one tile less, with which a quarter would not be in common
    assert fewer < 1 or (length - side) / fewer > side - side // 4


def test_a_length_below_a_tile_is_refused():
    with pytest.raises(ValueError, match="63 pixels are less than a tile of 64"):
        places(63, 64)


def test_tiles_begin_at_pixels_of_the_smaller_picture():
    tiles = Tiles(2, 44, 24, 16, unit=4)  # evenly they would lie 9 and a third apart
    assert len({tile.picture for tile in tiles.tiles}) == 2
    assert all(tile.top % 4 == 0 and tile.left % 4 == 0 for tile in tiles.tiles)
    assert (tiles.total > 0).all()


def test_shares_of_tiles_that_lie_half_over_each_other_are_one_together():
    """... as those of sin^2 are without a division: they come and go without an edge."""
    window = Tiles(1, 8, 8, 8).window
    torch.testing.assert_close(window[:4] + window[4:], (window[:1] + window[4:5]).expand(4, 8))
    assert window[0].max() < 0.04 and torch.equal(window, window.T)


def test_a_tile_is_asked_for_at_the_level_of_its_picture():
    def level(x: torch.Tensor, t: torch.Tensor) -> Prediction:
        return Prediction.from_x0(x, (t / 1000).view(-1, 1, 1, 1).expand_as(x), SCHEDULE.at(t))

    x, t = torch.zeros(2, 3, 20, 13), torch.tensor([700, 40])
    made = Tiles(2, 20, 13, 8).denoise(lambda some: level, SCHEDULE, most=3)(x, t)
    torch.testing.assert_close(made.x0, level(x, t).x0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("most", [1, 3, 99])
def test_a_network_that_looks_at_pixels_draws_in_tiles_what_it_draws_at_once(sampler, most):
    noise = Noise([1, 2])((3, 20, 13))
    tiles, steps = Tiles(2, 20, 13, 8), step_list(4, 1000)
    drawn = []
    for denoise in (local, tiles.denoise(lambda some: local, SCHEDULE, most)):
        *_, last = SAMPLERS[sampler](denoise, SCHEDULE, noise, steps, Noise([3, 4]))
        drawn.append(last.x)
    torch.testing.assert_close(*drawn, atol=1e-4, rtol=1e-4)


def test_each_tile_is_drawn_by_its_own_conditions():
    value = torch.arange(2 * 20 * 13).reshape(2, 1, 20, 13).float()
    tiles = Tiles(2, 20, 13, 8)

    def of(some):
        cut = tiles.cut(value, some)
        return lambda x, t: Prediction.from_x0(x, cut.expand_as(x), SCHEDULE.at(t), 0.5)

    out = tiles.denoise(of, SCHEDULE, 3)(torch.zeros(2, 3, 20, 13), torch.full((2,), 500))
    torch.testing.assert_close(out.x0, value.expand(-1, 3, -1, -1))
    assert out.frac == 0.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_border_is_seen_though_tiles_know_nothing_of_each_other(sampler):
    """Pixels on both sides of a border differ less than others; with windows of one height, far more."""

    def across(height: str) -> tuple[float, float]:
        tiles = Tiles(1, 160, 32, 32)
        if height == "one":
            tiles.window = torch.ones(32, 32)
            tiles.total = torch.zeros_like(tiles.total)
            for tile in tiles.tiles:
                tiles.total[:, :, tile.top : tile.top + 32] += 1
        denoise = tiles.denoise(lambda some: torn, SCHEDULE)
        steps = step_list(4, 1000)
        *_, last = SAMPLERS[sampler](denoise, SCHEDULE, Noise([5])((3, 160, 32)), steps, Noise([6]))
        differences = last.x0.diff(dim=2).abs().mean((0, 1, 3))
        starts = [tile.top for tile in tiles.tiles]
        ends = [top + 32 for top in starts[:-1]]
        borders = torch.tensor(sorted({*starts[1:], *ends})) - 1
        rest = torch.ones(len(differences), dtype=torch.bool)
        rest[borders] = False
        return differences[borders].max().item(), differences[rest].mean().item()

    border, elsewhere = across("sine")
    assert 0 < border < elsewhere
    border, elsewhere = across("one")
    assert border > 5 * elsewhere


def test_each_part_of_the_tiles_is_one_denoise_that_may_remember_its_walk():
    asked, seen = [], []

    def of(some):
        asked.append(list(some))
        number = len(asked)
        return lambda x, t: seen.append((number, int(t[0]))) or local(x, t)

    denoise = Tiles(1, 20, 20, 8).denoise(of, SCHEDULE, 4)
    for t in (900, 500):
        denoise(torch.zeros(1, 3, 20, 20), torch.tensor([t]))
    parts = range(1, len(asked) + 1)
    assert len(parts) > 1 and seen == [(k, t) for t in (900, 500) for k in parts]
