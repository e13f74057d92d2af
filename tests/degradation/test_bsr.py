"""BSR: each step against what it is said to be, and each picture by its own stream."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import randn, seeded

from unclip.degradation import bsr
from unclip.degradation.bsr import Dice
from unclip.degradation.jpeg import CHROMA, LUMA, jpeg, table
from unclip.diffusion.noise import Noise


def dice(seed: int = 0) -> Dice:
    return Dice(torch.rand(200, generator=seeded(seed)).tolist())


def smooth(height: int, width: int) -> torch.Tensor:
    """A picture [3,height,width] in [-1,1] with forms in it."""
    return F.interpolate(randn(1, 3, 8, 8), size=(height, width), mode="bicubic")[0].clamp(-1, 1)


def through_pil(picture: torch.Tensor, quality: int) -> tuple[torch.Tensor, dict]:
    pixels = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1, image.quantization


@pytest.mark.parametrize("size", [(64, 64), (50, 37)])
@pytest.mark.parametrize("quality", [10, 30, 60, 95])
def test_jpeg_against_the_codec(size, quality):
    """The tables are those of the file; pixels differ by the codec's roundings, little beside the loss."""
    picture = smooth(*size)
    theirs, tables = through_pil(picture, quality)
    for number, base in enumerate((LUMA, CHROMA)):
        assert sorted(tables[number]) == sorted(table(base, quality).flatten().tolist())
    ours = jpeg(picture, quality)
    apart, lost = (ours - theirs).abs().mean(), (picture - theirs).abs().mean()
    assert ours.shape == picture.shape and apart < 1.5 / 127.5 and apart < 0.5 * lost
    values = (ours + 1) * 127.5
    torch.testing.assert_close(values, values.round(), atol=1e-4, rtol=0)


def test_jpeg_of_one_colour_keeps_it_and_of_grey_stays_grey():
    flat = torch.tensor([0.5, -0.2, 0.1]).view(3, 1, 1).expand(3, 20, 20)
    assert (jpeg(flat, 95) - flat).abs().max() < 3 / 127.5
    grey = jpeg(smooth(32, 32)[:1].expand(3, -1, -1), 40)
    assert (grey - grey[:1]).abs().max() <= 1 / 127.5
    for quality in (0, 101):
        with pytest.raises(ValueError, match=f"quality is 1 to 100, not {quality}"):
            jpeg(flat, quality)


def moments(kernel: torch.Tensor) -> torch.Tensor:
    """The covariance [2,2] of a kernel, as it lies there, in pixels of (x, y)."""
    place = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    k = kernel.double()
    xx, yy = (k.sum(0) * place**2).sum(), (k.sum(1) * place**2).sum()
    xy = (k * place[:, None] * place).sum()
    return torch.tensor([[xx, xy], [xy, yy]])


def test_a_kernel_has_the_covariance_it_was_asked_for():
    covariance = torch.tensor([[4.0, 1.5], [1.5, 2.0]])
    kernel = bsr.gaussian(21, covariance)
    assert kernel.sum() == pytest.approx(1) and kernel.argmax() == 21 * 21 // 2
    torch.testing.assert_close(moments(kernel), covariance.double(), atol=0.01, rtol=0)


def test_kernels_are_of_the_papers_sizes_and_widths():
    for factor, widest, longest in ((2, 2.4, 6), (4, 2.8, 8)):
        throws = [dice(seed) for seed in range(300)]
        round_ = [bsr.isotropic(one, factor) for one in throws]
        assert {len(kernel) for kernel in round_} == set(range(7, 22, 2))
        sigmas = torch.tensor([moments(k)[0, 0] ** 0.5 for k in round_ if len(k) >= 17])
        assert 0 <= sigmas.min() < 0.5 and widest - 0.4 < sigmas.max() <= widest
        assert all(torch.allclose(kernel, kernel.T) for kernel in round_)
        oblong = torch.stack(
            [moments(k) for k in (bsr.anisotropic(one, factor) for one in throws) if len(k) > 15]
        )
        axes = torch.linalg.eigvalsh(oblong)
        assert axes.min() > 0.45 and longest - 1 < axes.max() < longest + 0.01
        angles = torch.atan2(2 * oblong[:, 0, 1], oblong[:, 0, 0] - oblong[:, 1, 1])
        assert torch.histc(angles, 4, -math.pi, math.pi).min() > len(angles) / 8  # to all sides


def test_blur_keeps_light_and_has_no_direction_of_its_own():
    kernel, dot = bsr.gaussian(7, torch.tensor([[3.0, 1.0], [1.0, 1.0]])), torch.zeros(3, 31, 31)
    dot[:, 15, 15] = 1
    spread = bsr.blurred(dot, kernel)
    assert spread.sum() == pytest.approx(3, rel=1e-5)
    torch.testing.assert_close(spread[0, 12:19, 12:19], kernel)
    assert torch.allclose(
        bsr.blurred(torch.full((3, 16, 16), 0.3), bsr.gaussian(21, 5 * torch.eye(2))), torch.tensor(0.3)
    )


def test_resizing_moves_nothing():
    """Whatever the mode and the way: a slope stays the slope, within what nearest pixels are off."""
    slope = torch.linspace(-0.9, 0.9, 64).expand(3, 64, 64)
    there = F.avg_pool2d(slope[None], 4)[0]
    modes, over = set(), set()
    for seed in range(60):

        class Told(Dice):
            def one_of(self, things):
                modes.add(thing := super().one_of(things))
                return thing

        small = bsr.shrunk(slope, (16, 16), 4, Told(dice(seed)._numbers))
        assert small.shape == (3, 16, 16)
        assert (small - there)[:, 4:-4, 4:-4].abs().mean() < 0.035
        over.add(small.std().item())
    assert modes == set(bsr.MODES) and len(over) > 6


def test_noise_is_of_the_papers_three_kinds():
    still, seen = torch.zeros(3, 64, 64), []
    for seed in range(200):
        noise = bsr.noisy(still, dice(seed), randn(3, 64, 64, seed=seed)).flatten(1)
        covariance = noise.cov()
        sigma = covariance.diag().mean() ** 0.5 / 2  # of pixels in [0,1]
        assert sigma < 25.5 / 255
        equal = torch.equal(noise[0], noise[1])
        apart = (covariance / covariance.diag().mean() - torch.eye(3)).abs().max() < 0.15
        seen.append("grey" if equal else "colours" if apart else "correlated")
        assert equal or not apart or sigma > 0.9 / 255
    share = {kind: seen.count(kind) / len(seen) for kind in seen}
    assert share == pytest.approx({"grey": 0.4, "colours": 0.4, "correlated": 0.2}, abs=0.1)


def test_correlations_have_eigenvalues_up_to_one():
    factors = torch.stack([bsr.correlation(dice(seed)) for seed in range(200)])
    values = torch.linalg.eigvalsh(factors @ factors.mT)
    assert values.min() > -1e-5 and values.max() < 1 + 1e-5 and values.max() > 0.95
    assert values.mean() == pytest.approx(0.5, abs=0.05)


def test_the_steps_come_in_any_order_and_jpeg_last(monkeypatch):
    orders, qualities = [], []

    def watched(name: str):
        real = getattr(bsr, name)

        def step(x, *rest):
            orders[-1].append(name)
            qualities.extend(rest if name == "jpeg" else [])
            return real(x, *rest)

        return step

    for name in ("blurred", "shrunk", "noisy", "jpeg"):
        monkeypatch.setattr(bsr, name, watched(name))
    for seed in range(300):
        orders.append([])
        bsr.spoilt(smooth(64, 64), 4, dice(seed), randn(3, 64, 64))
    assert all(order[-1] == "jpeg" for order in orders)
    assert all(
        order.count("blurred") == 2 and order.count("shrunk") == order.count("noisy") == 1 for order in orders
    )
    twice = sum(order.count("jpeg") == 2 for order in orders) / len(orders)
    assert twice == pytest.approx(0.75, abs=0.08)
    assert min(qualities) in range(30, 33) and max(qualities) in range(93, 96)
    wanted = set(itertools.permutations(["blurred", "blurred", "shrunk", "noisy"]))
    assert {tuple(order[:-1]) for order in orders if "jpeg" not in order[:-1]} == wanted


@pytest.mark.bitwise
def test_a_picture_depends_on_its_own_stream_alone():
    pictures, seeds = torch.stack([smooth(64, 64), smooth(64, 64).flip(1), smooth(64, 64).flip(2)]), [5, 6, 7]
    together = bsr.bsr(pictures, 4, Noise(seeds))
    assert together.shape == (3, 3, 16, 16) and together.abs().max() <= 1
    alone = [bsr.bsr(pictures[k : k + 1], 4, Noise(seeds[k : k + 1])) for k in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(bsr.bsr(pictures[[2, 0]], 4, Noise([7, 5])), together[[2, 0]])
    same = pictures[:1].expand(3, -1, -1, -1)
    assert len(bsr.bsr(same, 4, Noise(seeds)).unique(dim=0)) == 3
    assert torch.equal(bsr.bsr(same, 2, seeded(1)), bsr.bsr(same, 2, seeded(1)))


@pytest.mark.attack
@pytest.mark.parametrize("side, factor", [(60, 4), (66, 4), (28, 2)])
def test_pictures_that_are_too_small_or_do_not_divide_are_refused(side, factor):
    with pytest.raises(ValueError, match=f"not by {factor} of {side}x{side}"):
        bsr.bsr(torch.zeros(1, 3, side, side), factor, Noise([0]))
