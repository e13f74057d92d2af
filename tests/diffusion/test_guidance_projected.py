"""Adaptive projected guidance, against plain guidance, the paper's algorithm one by one, and itself."""

import pytest
import torch
from mixture import MEANS, STDS, exact_x0
from torch import Tensor

from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.gaussian import diffuse
from unclip.diffusion.guidance import Projection, classifier_free, parse_projection, projected
from unclip.diffusion.noise import Noise
from unclip.diffusion.repaint import repaint
from unclip.diffusion.samplers import SAMPLERS
from unclip.diffusion.schedule import SCHEDULES, Schedule, make_schedule

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
    """To the bit."""
    for interval in (None, (0.2, 0.7)):
        plain = walk(name, None, interval=interval)
        assert all(map(torch.equal, walk(name, Projection(1.0, 1e9, 0.0), interval=interval), plain))
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
        levels = torch.arange(60, 0, -10)[:, None].expand(6, 3)
        ours = torch.stack([project(*one) for one in zip(updates, pictures, levels, strict=True)])
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
        assert projected(Projection(0.0, 1.0, -0.5))(update, picture, torch.ones(2)).isfinite().all()


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


def of_one_gaussian(schedule: Schedule, k: int, x: Tensor, t: Tensor) -> Tensor:
    """E[x0 | x_t] of one of the mixture's two."""
    level, mean, variance = schedule.at(t).like(x), MEANS[k].to(x), STDS[k].to(x) ** 2
    share = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
    return mean + share * (x - level.alpha * mean)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("apg", [(0.0, 1e9, 0.0), (0.4, 0.3, 0.0), (1.0, 0.3, -0.75), (0.2, 1e9, 0.5)])
def test_the_guided_denoiser_of_a_mixture_is_known(schedule, apg):
    """One of two Gaussians is asked for, and guided away from both together."""
    schedule, apg = make_schedule(schedule, 100), Projection(*apg)
    whole = exact_x0(schedule)

    def network(x: Tensor, t: Tensor, k: Tensor) -> Tensor:
        own = [of_one_gaussian(schedule, j, x, t.long() + 1) for j in (0, 1)]
        return torch.where(k[:, None] < 0, whole(x, t), torch.where(k[:, None] == 0, *own))

    asked, nothing = {"k": torch.tensor([0, 1, 0])}, {"k": torch.full((3,), -1)}
    denoise = classifier_free(Denoiser(network, schedule, "x0"), asked, nothing, 4.0, 0.0, schedule, apg=apg)
    generator, levels = torch.Generator().manual_seed(5), (90, 60, 30)
    places = torch.randn(3, 3, 2, generator=generator, dtype=torch.float64)  # [T,N,2]
    outs = [denoise(x, torch.full((3,), t)) for x, t in zip(places, levels, strict=True)]
    for row, k in enumerate((0, 1, 0)):
        at = [(x[row : row + 1], torch.tensor([t])) for x, t in zip(places, levels, strict=True)]
        cond = torch.cat([of_one_gaussian(schedule, k, *one) for one in at])
        null = torch.cat([whole(x, t - 1) for x, t in at])
        wanted = cond + 3.0 * of_the_paper(cond - null, cond, apg)
        torch.testing.assert_close(torch.stack([out.x0[row] for out in outs]), wanted)
    for x, t, out in zip(places, levels, outs, strict=True):
        torch.testing.assert_close(diffuse(out.x0, out.eps, schedule.at(t)), x)


def test_a_level_that_is_asked_for_again_remembers_what_it_did():
    """As by Heun's method, RePaint and a second walk; and rows at several levels each do."""
    project, x0 = projected(Projection(1.0, 1e9, -0.5)), torch.ones(2, 3)

    def at(t: int, value: float) -> float:
        return project(torch.full((2, 3), value), x0, torch.full((2,), t))[0, 0].item()

    assert at(90, 4.0) == 4.0 and at(90, 8.0) == 8.0  # the second stands in the place of the first
    assert at(60, 2.0) == at(60, 2.0) == 2.0 - 4.0
    assert at(30, 1.0) == 1.0 + 1.0 and at(60, 6.0) == 6.0 - 4.0 and at(30, 1.0) == 1.0 - 1.0
    mixed = project(torch.zeros(2, 3), x0, torch.tensor([20, 50]))
    assert mixed[:, 0].tolist() == [0.0, -1.0]
    assert at(90, 2.0) == 2.0


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_hole_is_filled_by_steps_that_each_remember_the_levels_above(name):
    """Taken three times or once, the first step of a level starts from the same momentum."""
    model, levels = Denoiser(network, SCHEDULE, "v", "small"), []
    sides = {"c": torch.tensor([0.5, -0.3])}, {"c": torch.zeros(2)}
    known, x0 = torch.tensor([True, True, False, False, False]), torch.full((1, 5), 0.25)
    ends = []
    for apg in (Projection(0.0, 0.7, -0.5), Projection(0.0, 0.7, 0.0)):
        denoise = classifier_free(model, *sides, 4.0, 0.0, SCHEDULE, apg=apg)
        noise = Noise(range(2))

        def sample(x, steps, denoise=denoise, noise=noise):
            levels.append(tuple(steps))
            return SAMPLERS[name](denoise, SCHEDULE, x, steps, noise)

        *_, last = repaint(sample, SCHEDULE, noise((5,)), STEPS, noise, x0, known, 3)
        assert (last.x[:, :2] == 0.25).all() and last.x.isfinite().all()
        ends.append(last.x)
    assert levels.count((60, 40)) == 6 and (ends[0] - ends[1]).abs().max() > 1e-3
