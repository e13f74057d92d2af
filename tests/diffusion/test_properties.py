"""What holds for every schedule, prediction, variance and sampler, over their product."""

from functools import partial
from itertools import pairwise, product

import pytest
import torch
from mixture import wavy

from unclip.diffusion.denoiser import PREDICTS, Denoiser, Prediction
from unclip.diffusion.gaussian import beta, log_variance, posterior
from unclip.diffusion.guidance import bind, clamp_x0, classifier_free, gradient
from unclip.diffusion.losses import KINDS, WEIGHTINGS, loss_terms
from unclip.diffusion.noise import Noise
from unclip.diffusion.samplers import SAMPLERS, ddim, invert
from unclip.diffusion.schedule import SCHEDULES, evenly_spaced, make_schedule, step_list

VARIANCES = ["small", "large", "learned"]
EVERY_SAMPLER = {**SAMPLERS, "ddim, eta 1": partial(ddim, eta=1.0)}
PAIRS = [pair for pair in product(SCHEDULES, PREDICTS) if pair != ("flow", "eps")]  # which is refused

each_schedule = pytest.mark.parametrize("name", SCHEDULES)
each_sampler = pytest.mark.parametrize("sampler", EVERY_SAMPLER.values(), ids=EVERY_SAMPLER)
each_pair = pytest.mark.parametrize("name, predicts", PAIRS)
# ddpm alone draws with the model's variance; of the others each meets every kind of output with some pair.
SAMPLED = [("ddpm", *pair, variance) for pair in PAIRS for variance in VARIANCES]
SAMPLED += [
    (sampler, *pair, VARIANCES[number % 3])
    for sampler in EVERY_SAMPLER
    if sampler != "ddpm"
    for number, pair in enumerate(PAIRS)
]

SEEDS = [3, 1, 4]
SHIFT, NONE = torch.tensor([0.5, -0.2, 0.1]), torch.zeros(3)


def sample(sampler, schedule, make, pick=(0, 1, 2), count=4):
    """The steps of the pictures in `pick`; make(cond, null) is a denoise, then clamped."""
    pick = list(pick)
    noise = Noise([SEEDS[i] for i in pick])
    denoise = clamp_x0(make(dict(shift=SHIFT[pick]), dict(shift=NONE[pick])), schedule)
    steps = evenly_spaced(schedule.timesteps, count)
    return list(sampler(denoise, schedule, noise((3, 4, 4)), steps, noise))


@pytest.mark.parametrize("sampler, name, predicts, variance", SAMPLED)
def test_sampling(sampler, name, predicts, variance):
    sampler, schedule = EVERY_SAMPLER[sampler], make_schedule(name)
    model = wavy(schedule, predicts, variance)

    def plain(cond, null):
        return bind(model, **cond)

    def guided(cond, null, scale=1.0, rescale=0.0):
        return classifier_free(model, cond, null, scale, rescale, schedule)

    whole = sample(sampler, schedule, plain)
    assert [step.t for step in whole] == evenly_spaced(1000, 4)[1:]
    assert all(step.x.isfinite().all() and step.x0.isfinite().all() for step in whole)
    assert torch.equal(whole[-1].x, whole[-1].x0)
    assert whole[-1].x.dtype == torch.float32 and not whole[-1].x.requires_grad
    assert whole[-1].x.abs().max() <= 1
    # guidance of scale 1 is no guidance, also rescaled
    for rescale in (0.0, 0.7):
        assert torch.equal(sample(sampler, schedule, partial(guided, rescale=rescale))[-1].x, whole[-1].x)
    # picture k is the same alone and in a batch, with guidance that does something
    for rescale in (0.0, 0.7):
        strong = partial(guided, scale=3.0, rescale=rescale)
        batch, alone = sample(sampler, schedule, strong)[-1].x, sample(sampler, schedule, strong, [1])[-1].x
        torch.testing.assert_close(batch[1:2], alone, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(batch, whole[-1].x, atol=1e-2)


@each_sampler
@each_pair
def test_a_single_step_and_every_list_are_finite(sampler, name, predicts):
    """Also from alpha = 0, and with a gradient, which tells nothing there."""
    schedule = make_schedule(name)
    model = bind(wavy(schedule, predicts, "learned"))
    pushed = clamp_x0(gradient(model, schedule, lambda x, t, x0: torch.ones_like(x)), schedule)
    for spec in (1, 2, "ddim5", "2,1", *(["fast27"] if predicts == "v" else [])):
        steps, noise = step_list(spec, 1000), Noise([7])
        for denoise in (clamp_x0(model, schedule), pushed):
            made = list(sampler(denoise, schedule, noise((3, 2, 2)), steps, noise))
            assert [step.t for step in made] == steps[1:]
            assert all(step.x.isfinite().all() for step in made)


@each_pair
def test_inversion_is_finite_and_the_same_alone(name, predicts):
    schedule = make_schedule(name)
    model = clamp_x0(bind(wavy(schedule, predicts, "small")), schedule)
    pictures, steps = torch.rand(3, 3, 4, 4) * 2 - 1, step_list(20, 1000)[::-1]
    *_, whole = invert(model, schedule, pictures, steps)
    *_, alone = invert(model, schedule, pictures[1:2], steps)
    assert whole.t == 1000 and whole.x.isfinite().all()
    torch.testing.assert_close(whole.x[1:2], alone.x, rtol=1e-5, atol=1e-5)


def told_in(schedule, predicts):
    """One and the same model, told in eps, x0 or v, as a Denoiser."""

    def network(x, t, shift):
        level = schedule.at(t.long() + 1)
        out = Prediction.from_v(x, x.sin() + shift.view(-1, 1, 1, 1), level)
        return out.v(level) if predicts == "v" else getattr(out, predicts)

    return Denoiser(network, schedule, predicts)


@each_sampler
@each_schedule
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_classifier_free_guidance_agrees_across_predictions(sampler, name, rescale):
    """In float64, where what eps, x0 and v cannot tell at either end is not lost to rounding."""
    schedule, x = make_schedule(name), torch.randn(3, 3, 4, 4, dtype=torch.float64)
    made = []
    for predicts in [predicts for of, predicts in PAIRS if of == name]:
        model, noise = told_in(schedule, predicts), Noise(SEEDS)
        guided = classifier_free(model, dict(shift=SHIFT), dict(shift=NONE), 3.0, rescale, schedule)
        *_, step = sampler(guided, schedule, x, [1000, 700, 400, 100, 1, 0], noise)
        made.append(step.x)
    assert len(made) == (2 if name == "flow" else 3)
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], rtol=1e-8, atol=1e-8)


T = torch.tensor([1, 2, 3, 40, 99, 100])
GENERATOR = torch.Generator().manual_seed(0)
X0 = torch.randint(0, 256, (6, 3, 4, 4), generator=GENERATOR) / 127.5 - 1
NOISE = torch.randn(X0.shape, generator=GENERATOR)


# Only the bound asks for the variance; what a weight does is the same beside it.
LOSSES = [
    ("simple", "none", "small"),
    ("simple", "none", "learned"),
    ("simple", "min_snr", "small"),
    ("simple", "p2", "large"),
    ("rescaled", "none", "learned"),
    ("auxiliary", "none", "small"),
    *(("hybrid", weighting, "learned") for weighting in ("none", *WEIGHTINGS)),
    *(("vlb", "none", variance) for variance in VARIANCES),
]


@each_pair
@pytest.mark.parametrize("kind, weighting, variance", LOSSES)
def test_every_loss(name, predicts, variance, kind, weighting):
    """Finite with its gradients, and, in hybrid, no gradient of the bound on the mean's half."""
    schedule = make_schedule(name, 100)
    true = Prediction(X0, NOISE)
    target = true.v(schedule.at(T)) if predicts == "v" else getattr(true, predicts)
    # Near the answer: far from it 8-bit likelihoods end in a floor, which has no gradient.
    mean = (target + 0.01 * torch.randn(X0.shape, generator=GENERATOR)).requires_grad_()
    values = torch.randn(X0.shape, generator=GENERATOR).requires_grad_()
    answer = torch.cat([mean, values], 1) if variance == "learned" else mean

    def terms(pick=slice(None)):
        one = Denoiser(lambda x, t: answer[pick], schedule, predicts, variance)
        return loss_terms(one, X0[pick], T[pick], NOISE[pick], {}, kind, weighting)

    made = terms()
    names = {"simple": {"mse"}, "hybrid": {"mse", "vlb"}, "auxiliary": {"vlb", "auxiliary"}}
    assert made.keys() - {"loss"} == names.get(kind, {"vlb"})
    assert all(term.shape == (6,) and term.dtype == torch.float32 for term in made.values())
    assert all((term.isfinite() & (term >= 0)).all() for term in made.values())
    torch.testing.assert_close(made["loss"], sum(made[term] for term in made if term != "loss"))
    alone = terms(slice(3, 4))
    torch.testing.assert_close(made["loss"][3:4], alone["loss"])
    of_mean, of_values = torch.autograd.grad(
        made["loss"].sum(), [mean, values], allow_unused=True, retain_graph=True
    )
    assert of_mean.isfinite().all() and of_mean.abs().sum() > 0
    if of_values is not None:
        assert of_values.isfinite().all()
    if kind == "hybrid":
        bound = torch.autograd.grad(made["vlb"].sum(), [mean, values], allow_unused=True)
        assert bound[0] is None or (bound[0] == 0).all()
        assert (bound[1].abs().flatten(1).sum(1) > 0).all()


def test_losses_that_do_not_go_together_are_refused():
    refused = 0
    for kind, weighting, variance in product(KINDS, ("none", *WEIGHTINGS), VARIANCES):
        denoiser = wavy(make_schedule("cosine", 100), "v", variance)
        hybrid, weighted = kind == "hybrid" and variance != "learned", weighting != "none"
        if hybrid or (weighted and kind not in ("simple", "hybrid")):
            with pytest.raises(ValueError, match="needs learned" if hybrid else "sets its own weights"):
                loss_terms(denoiser, X0, T, NOISE, {}, kind, weighting)
            refused += 1
        else:
            assert loss_terms(denoiser, X0, T, NOISE, {}, kind, weighting)["loss"].shape == (6,)
    of_hybrid = (len(VARIANCES) - 1) * (1 + len(WEIGHTINGS))
    assert refused == of_hybrid + 3 * len(WEIGHTINGS) * len(VARIANCES)


@each_schedule
@pytest.mark.parametrize("spec", [1, 10, 100, "ddim34", "10,5,2"])
def test_a_respaced_chain_has_the_direct_coefficients(name, spec):
    """Bayes' rule over each long step, composed of the single steps that it leaves out."""
    schedule = make_schedule(name, 100)
    x, x0 = torch.randn(2, 5, dtype=torch.float64, generator=GENERATOR)
    for t, s in pairwise(step_list(spec, 100)):
        a, added = torch.ones(2, dtype=torch.float64)  # x_t = a x_s + sqrt(added) eps
        for k in range(s + 1, t + 1):
            level, below = schedule.at(k), schedule.at(k - 1)
            one = level.alpha / below.alpha
            a, added = one * a, one**2 * added + (level.sigma**2 - one**2 * below.sigma**2)
            if k == s + 1:
                added = added - one**2
        level_t, level_s = schedule.at(t), schedule.at(s)
        torch.testing.assert_close(beta(level_t, level_s), added, rtol=1e-9, atol=0)
        mean, variance = posterior(x, x0, level_t, level_s)
        prior = level_s.sigma**2
        expected = prior * added / (added + a**2 * prior)
        torch.testing.assert_close(variance, expected, rtol=1e-9, atol=0)
        gain = a * prior / (added + a**2 * prior)
        from_prior = level_s.alpha * x0
        torch.testing.assert_close(mean, from_prior + gain * (x - a * from_prior), rtol=1e-9, atol=1e-9)
        for frac, bound in ((0.0, expected), (1.0, added)):
            found = log_variance(frac, level_t, level_s)
            torch.testing.assert_close(found, bound.clamp(min=1e-20).log())


@pytest.mark.parametrize("variance", VARIANCES)
def test_eps_is_refused_where_nothing_is_left_of_the_picture(variance):
    with pytest.raises(ValueError, match="eps cannot be predicted with the flow schedule: .* x0 or v"):
        wavy(make_schedule("flow"), "eps", variance)


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_shape_mismatch_is_refused(variance):
    schedule, other = make_schedule("cosine"), "small" if variance == "learned" else "learned"
    wrong = Denoiser(wavy(schedule, "v", other).network, schedule, "v", variance)
    with pytest.raises(ValueError, match=rf"the network made .* from \(2, 3, 4, 4\); {variance} variance"):
        wrong(torch.randn(2, 3, 4, 4), torch.tensor([5, 10]))


@each_sampler
@pytest.mark.parametrize(
    "steps, message",
    [
        ([], "two levels"),
        ([5], "two levels"),
        ([9, 10, 0], "descend"),
        ([9, 9, 0], "descend"),
        ([1001, 0], "must be in 1000..0"),
        ([5, -1], "must be in 1000..0"),
    ],
)
def test_step_lists_that_make_no_sense_are_refused(sampler, steps, message):
    schedule, noise = make_schedule("cosine"), Noise([0])
    with pytest.raises(ValueError, match=message):
        list(sampler(bind(wavy(schedule, "v", "small")), schedule, noise((3, 2, 2)), steps, noise))
