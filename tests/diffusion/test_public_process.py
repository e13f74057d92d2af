"""The core against what the public Gaussian diffusion code computed.

UNCLIP_FIXTURES may name another folder whose process/ has files of the same form.
"""

import math

import pytest
import torch
from public_process import CASES, ROUNDING, TABLES, close, load

from unclip.diffusion.denoiser import Prediction
from unclip.diffusion.gaussian import beta, diffuse, log_variance, posterior
from unclip.diffusion.guidance import clamp_x0, gradient
from unclip.diffusion.likelihood import prior_term
from unclip.diffusion.losses import loss_terms, vlb_terms
from unclip.diffusion.samplers import ddim, ddpm, invert
from unclip.diffusion.schedule import Schedule, like, step_list

BOUND = {"kl": "vlb", "rescaled_kl": "rescaled"}


each_case = pytest.mark.parametrize("name", CASES)


@each_case
def test_the_process_itself(name):
    case = load(name)
    level_t, level_s, before = case.levels()
    x0, noise = case.inputs["x_start"], case.inputs["noise"]
    x = diffuse(x0, noise, level_t)
    close(x, case.outputs["x_t"])
    mean, _ = posterior(x, x0, level_t, level_s)
    close(mean, case.outputs["posterior_mean"])
    log_var = log_variance(0.0, level_t, level_s, before)
    close(like(log_var, x), case.outputs["posterior_log_variance"])
    chain = torch.tensor(case.steps)
    up = case.schedule.at(chain[:-1]), case.schedule.at(chain[1:])
    betas = beta(*up).flip(0)
    assert ((betas - case.outputs["betas"]).abs() / case.outputs["betas"]).max() < 1e-10


@each_case
def test_the_prediction(name):
    case = load(name)
    level_t, level_s, before = case.levels()
    x = case.outputs["x_t"]
    out = case.denoiser(x, case.t)
    close(like(log_variance(out.frac, level_t, level_s, before), x), case.outputs["log_variance"])
    close(posterior(x, out.x0, level_t, level_s)[0], case.outputs["mean_unclipped"])
    clamped = clamp_x0(case.denoiser, case.schedule)
    x0 = clamped(x, case.t).x0
    close(x0, case.outputs["pred_xstart"])
    close(posterior(x, x0, level_t, level_s)[0], case.outputs["mean"])
    guided = gradient(clamped, case.schedule, lambda *_: case.inputs["guidance_gradient"])
    x0 = guided(x, case.t).x0
    close(posterior(x, x0, level_t, level_s)[0], case.outputs["guided_score_mean"])


@each_case
def test_a_ddim_step(name):
    case = load(name)
    x, previous = case.outputs["x_t"], case.outputs["ddim_previous"]
    denoise = clamp_x0(case.denoiser, case.schedule)
    for i, (t, s) in enumerate(zip(case.t.tolist(), case.s.tolist(), strict=True)):
        steps = list(ddim(denoise_one(denoise, i, x), case.schedule, x[i : i + 1], [t, s]))
        close(steps[-1].x, previous[i : i + 1])


def denoise_one(denoise, i, xs):
    """A denoise for picture i alone; the network of a case answers for the whole batch."""

    def one(x, t):
        out = denoise(xs, t.expand(len(xs)))
        return type(out)(out.x0[i : i + 1], out.eps[i : i + 1])

    return one


@each_case
def test_a_ddim_step_backwards(name):
    """The public code goes one step beyond T, to a level without any picture."""
    case = load(name)
    end = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, sigma = torch.cat([case.schedule.alpha, end[:1]]), torch.cat([case.schedule.sigma, end[1:]])
    schedule = Schedule("beyond", case.schedule.timesteps + 1, alpha, sigma)
    denoise = clamp_x0(case.denoiser, case.schedule)
    chain = [schedule.timesteps, *case.steps]
    x, following = case.outputs["x_t"], case.outputs["ddim_next"]
    for i, t in enumerate(case.t.tolist()):
        to = chain[chain.index(t) - 1]
        (step,) = invert(denoise_one(denoise, i, x), schedule, x[i : i + 1], [t, to])
        assert step.t == to
        close(step.x, following[i : i + 1])


@each_case
def test_an_ancestral_step_with_the_mean_shifted(name):
    """By the sampler itself, from the level before t, so that it knows t's neighbours."""
    case = load(name)
    x, guided = case.outputs["x_t"], case.outputs["guided_mean"]
    clamped = clamp_x0(case.denoiser, case.schedule)
    for i, (t, s, b) in enumerate(zip(case.t.tolist(), case.s.tolist(), case.before.tolist(), strict=True)):
        one, start = slice(i, i + 1), torch.zeros_like(x[i : i + 1]).double()
        push = case.inputs["guidance_gradient"][one]
        to_x = posterior(start, torch.ones_like(start), case.schedule.at(b), case.schedule.at(t))[0]

        def denoise(now, level, one=one, to_x=to_x, b=b, t=t):
            if int(level) == b != t:  # the picture whose posterior mean is x_t
                return Prediction(x[one] / to_x, now, 0.0)
            out = clamped(x, level.expand(len(x)))
            frac = out.frac[one] if isinstance(out.frac, torch.Tensor) else out.frac
            return Prediction(out.x0[one], out.eps[one], frac)

        def shift(now, level, x0, push=push, t=t):
            return push if int(level) == t else torch.zeros_like(push)

        steps = [t, s] if b == t else [b, t, s]
        began = x[one] if b == t else start
        *_, step = ddpm(denoise, case.schedule, began, steps, no_noise, shift=shift)
        close(step.x.float(), guided[one])


def no_noise(shape):
    return torch.zeros(1, *shape)


@each_case
def test_the_losses(name):
    case = load(name)
    prior = prior_term(case.inputs["x_start"], case.schedule.at(case.steps[0]))
    close(prior, case.outputs["prior_bpd"], ROUNDING)
    levels, kind, count = case.levels(), case.info["loss"], len(case.steps) - 1
    x0, noise, x = case.inputs["x_start"], case.inputs["noise"], case.outputs["x_t"]
    whole = case.info["respacing"] is None  # training knows no other chain
    clamped = clamp_x0(case.denoiser, case.schedule)
    close(vlb_terms(clamped(x, case.t), x0, x, *levels), case.outputs["vlb_bpd"], ROUNDING)
    free = vlb_terms(case.denoiser(x, case.t), x0, x, *levels)
    if kind in BOUND:
        ours, scale = BOUND[kind], {"kl": 1, "rescaled_kl": count}[kind]
        close(free * scale, case.outputs["loss_loss"], ROUNDING * scale)
        if whole:
            terms = loss_terms(case.denoiser, x0, case.t, noise, kind=ours)
            assert terms.keys() == {"loss", "vlb"}
            close(terms["loss"], case.outputs["loss_loss"], ROUNDING * scale)
    else:
        mse = loss_terms(case.denoiser, x0, case.t, noise)["mse"]
        close(mse, case.outputs["loss_mse"])
        close(mse + case.outputs.get("loss_vb", 0), case.outputs["loss_loss"])
    if "loss_vb" in case.outputs:
        weight = count / 1000 if kind == "rescaled_mse" else 1
        close(free * weight, case.outputs["loss_vb"], ROUNDING)
    if whole and kind == "rescaled_mse" and case.denoiser.variance == "learned":
        terms = loss_terms(case.denoiser, x0, case.t, noise, kind="hybrid")
        close(terms["vlb"], case.outputs["loss_vb"], ROUNDING)
        close(terms["loss"], case.outputs["loss_loss"])


LISTS = [name for name, levels in TABLES.items() if "|" in name and len(levels) > 1]


@pytest.mark.parametrize("name", LISTS)  # one step publicly starts at t = 1, which is no sampling
def test_step_lists(name):
    timesteps, spec = name.split("|")
    assert step_list(spec, int(timesteps)) == [i + 1 for i in TABLES[name]][::-1] + [0]


@each_case
def test_a_cases_own_steps(name):
    case = load(name)
    respacing, timesteps = case.info["respacing"], case.schedule.timesteps
    if len(case.steps) > 2:  # as above
        assert step_list(respacing or timesteps, timesteps) == case.steps


class Papers:
    """A second implementation, in float64, of the equations as printed, from a chain's betas."""

    def __init__(self, betas: torch.Tensor):
        one = torch.ones(1, dtype=torch.float64)
        self.beta, self.alpha = betas, 1 - betas
        self.bar = self.alpha.cumprod(0)
        self.bar_before = torch.cat([one, self.bar[:-1]])
        self.bar_after = torch.cat([self.bar[1:], 0 * one])
        self.small = betas * (1 - self.bar_before) / (1 - self.bar)  # DDPM eq. 7
        self.clipped = torch.cat([self.small[1:2], self.small[1:]])

    def at(self, table: str, i: torch.Tensor) -> torch.Tensor:
        return getattr(self, table)[i].view(-1, 1, 1, 1)

    def noised(self, x0, noise, i):  # DDPM eq. 4
        return self.at("bar", i).sqrt() * x0 + (1 - self.at("bar", i)).sqrt() * noise

    def mean(self, x, x0, i):  # DDPM eq. 7
        bar, before, beta = self.at("bar", i), self.at("bar_before", i), self.at("beta", i)
        of_x = self.at("alpha", i).sqrt() * (1 - before) / (1 - bar)
        return before.sqrt() * beta / (1 - bar) * x0 + of_x * x

    def log_variance(self, kind, values, i):  # IDDPM eq. 15
        low, high = self.at("clipped", i).log(), self.at("beta", i).log()
        if kind == "learned":
            return (values + 1) / 2 * high + (1 - values) / 2 * low
        return torch.where((i == 0).view(-1, 1, 1, 1) | (kind == "small"), low, high)

    def predict(self, predicts, x, out, i):  # DDPM eq. 15, clipped
        bar = self.at("bar", i)
        x0 = out if predicts == "x0" else x / bar.sqrt() - (1 / bar - 1).sqrt() * out
        x0 = x0.clamp(-1, 1)
        return x0, (x - bar.sqrt() * x0) / (1 - bar).sqrt()

    def bound(self, x0, x, x0_hat, log_var, i):  # DDPM eqs. 5 and 13
        true, mean, before = self.mean(x, x0, i), self.mean(x, x0_hat, i), self.at("clipped", i).log()
        ratio = (before - log_var).exp() + (true - mean) ** 2 / log_var.exp()
        divergence = 0.5 * (log_var - before + ratio - 1)

        def cdf(z):
            return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

        std = (log_var / 2).exp()
        up = torch.where(x0 > 0.999, 1.0, cdf((x0 - mean + 1 / 255) / std))
        down = torch.where(x0 < -0.999, 0.0, cdf((x0 - mean - 1 / 255) / std))
        nll = -(up - down).clamp(min=1e-12).log()
        each = torch.where((i == 0).view(-1, 1, 1, 1), nll, divergence)
        return each.flatten(1).mean(1) / math.log(2)


def exact(ours, theirs, rounding=0.0):
    """Equal, in every picture, to 1e-9 of its largest value."""
    assert ours.dtype == theirs.dtype == torch.float64
    error, scale = (x.abs().reshape(len(theirs), -1).amax(1) for x in (ours - theirs, theirs))
    assert (error <= 1e-9 * scale + rounding).all()


@each_case
def test_in_float64_it_is_what_the_papers_print(name):
    case = load(name)
    papers, i, levels = Papers(case.outputs["betas"]), case.inputs["t"], case.levels()
    x0, noise, push, out = (
        case.inputs[key].double() for key in ("x_start", "noise", "guidance_gradient", "model_output")
    )
    mean_half, *rest = out.split(3, dim=1)
    variance, (level_t, level_s, _) = case.denoiser.variance, levels
    betas = beta(level_t, level_s)
    exact(betas, papers.beta[i])
    x = papers.noised(x0, noise, i)
    exact(diffuse(x0, noise, level_t), x)
    exact(posterior(x, x0, level_t, level_s)[0], papers.mean(x, x0, i))

    clamped = clamp_x0(case.denoiser, case.schedule)
    ours = clamped(x, case.t)
    x0_hat, eps = papers.predict(case.denoiser.predicts, x, mean_half, i)
    exact(ours.x0, x0_hat)
    exact(ours.eps, eps)
    log_var = papers.log_variance(variance, *(rest or [None]), i)
    exact(like(log_variance(ours.frac, *levels), x) + 0 * x, log_var + 0 * x)
    exact(vlb_terms(ours, x0, x, *levels), papers.bound(x0, x, x0_hat, log_var, i), 1e-15)

    mean = papers.mean(x, x0_hat, i)
    exact(posterior(x, ours.x0, level_t, level_s)[0], mean)
    guided = gradient(clamped, case.schedule, lambda *_: push)(x, case.t)
    score_eps = eps - (1 - papers.at("bar", i)).sqrt() * push  # ADM eq. 14
    bar = papers.at("bar", i)
    score_x0 = (x - (1 - bar).sqrt() * score_eps) / bar.sqrt()
    exact(guided.x0, score_x0)
    for k, (t, s) in enumerate(zip(case.t.tolist(), case.s.tolist(), strict=True)):
        step = list(ddim(denoise_one(clamped, k, x), case.schedule, x[k : k + 1], [t, s]))[-1]
        now = papers.bar_before[i[k]]  # DDIM eq. 12
        exact(step.x, now.sqrt() * x0_hat[k : k + 1] + (1 - now).sqrt() * eps[k : k + 1])
    end = papers.bar[-1]
    prior = 0.5 * (-1 - (1 - end).log() + (1 - end) + end * x0**2)
    exact(prior_term(x0, case.schedule.at(case.steps[0])), prior.flatten(1).mean(1) / math.log(2))
