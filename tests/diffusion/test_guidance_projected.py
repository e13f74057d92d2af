"""Adaptive projected guidance, against plain guidance, the paper's algorithm one by one, and itself."""

import pytest
import torch
from torch import Tensor

from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.guidance import Projection, classifier_free, parse_projection, projected
from unclip.diffusion.noise import Noise
from unclip.diffusion.samplers import SAMPLERS
from unclip.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("cosine", 100)
STEPS = (100, 80, 60, 40, 20, 0)


def network(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
    return x.sin() + c.view(-1, 1)


def walk(name: str, apg: Projection | None, rows=(0, 1, 2), interval=None, scale=4.0) -> list[Tensor]:
    cond = {"c": torch.tensor([0.5, -0.3, 0.2])[list(rows)]}
    null = {"c": torch.zeros(len(rows))}
    model = Denoiser(network, SCHEDULE, "v", "small")
    denoise = classifier_free(model, cond, null, scale, 0.0, SCHEDULE, interval, apg)
    start = Noise(rows)((5,))
    return [step.x for step in SAMPLERS[name](denoise, SCHEDULE, start, STEPS, Noise([9 + k for k in rows]))]


@pytest.mark.parametrize("name", SAMPLERS)
def test_without_cut_share_and_momentum_it_is_plain_guidance(name):
    torch.testing.assert_close(walk(name, Projection(1.0, 1e9, 0.0)), walk(name, None), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(walk(name, Projection(0.0, 1e9, 0.0))[-1], walk(name, None)[-1], atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_remembers_picture_by_picture_and_forgets_between_walks(name):
    apg = Projection(0.2, 0.7, -0.5)
    whole = walk(name, apg)
    assert all(torch.equal(a, b) for a, b in zip(whole, walk(name, apg), strict=True))
    for row in range(3):
        alone = walk(name, apg, (row,))
        torch.testing.assert_close([x[row : row + 1] for x in whole], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole[-1], walk(name, apg._replace(momentum=0.0))[-1], atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_goes_with_an_interval(name):
    apg = Projection(0.0, 0.7, -0.5)
    assert all(map(torch.equal, walk(name, apg, interval=(0.0, 1.0)), walk(name, apg)))
    assert all(map(torch.equal, walk(name, apg, interval=(0.0, 1e-9)), walk(name, None, scale=1.0)))


def of_the_paper(updates: Tensor, pictures: Tensor, apg: Projection) -> Tensor:
    """Algorithm 1 of one picture's updates and predictions [T,D], one after the other."""
    moving, changed = torch.zeros_like(updates[0]), []
    for update, picture in zip(updates, pictures, strict=True):
        moving = update + apg.momentum * moving
        cut = moving * min(1.0, apg.norm / moving.norm().item())
        direction = picture / picture.norm()
        parallel = torch.dot(cut, direction) * direction
        changed.append(cut - parallel + apg.eta * parallel)
    return torch.stack(changed)


def test_it_is_the_papers_algorithm():
    generator = torch.Generator().manual_seed(4)
    updates, pictures = torch.randn(2, 6, 3, 2, 4, 4, generator=generator, dtype=torch.float64)  # [T,N,...]
    for apg in (Projection(0.0, 2.0, -0.75), Projection(0.4, 4.0, 0.5), Projection(1.0, 1e9, -0.5)):
        project = projected(apg)
        ours = torch.stack([project(u, x) for u, x in zip(updates, pictures, strict=True)])
        for k in range(3):
            wanted = of_the_paper(updates[:, k].flatten(1), pictures[:, k].flatten(1), apg)
            torch.testing.assert_close(ours[:, k].flatten(1), wanted)
        if apg.eta == 0:
            torch.testing.assert_close(
                (ours * pictures).sum((2, 3, 4)), torch.zeros(6, 3, dtype=torch.float64)
            )


def test_a_picture_of_zeros_and_no_update_at_all_make_numbers():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    for update, picture in ((one, zero), (zero, one), (zero, zero)):
        assert projected(Projection(0.0, 1.0, -0.5))(update, picture).isfinite().all()


@pytest.mark.attack
@pytest.mark.parametrize("apg", ["0", "0,15", "0,15,-0.5,1", "2,15,0", "0,0,0", "0,-1,0", "0,inf,0", "0,15,1",
                                 "nan,15,0", "a,b,c", 0.5, None, (True, 1, 0), {0: 1}])  # fmt: skip
def test_what_is_no_projection(apg):
    with pytest.raises(ValueError, match="^apg('s eta| is three numbers)"):
        parse_projection(apg)


def test_it_needs_the_schedule():
    assert parse_projection("0, 15, -0.5") == parse_projection([0, 15, -0.5]) == Projection(0.0, 15.0, -0.5)
    with pytest.raises(ValueError, match="projected or kept to an interval only with the schedule"):
        classifier_free(None, {}, {}, 2.0, apg=Projection(0.0, 15.0, -0.5))
