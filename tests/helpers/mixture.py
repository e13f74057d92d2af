"""Data whose denoiser is known exactly, to hold samplers to: a mixture of two Gaussians, and one alone."""

import torch

from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.schedule import Level, Schedule

WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.5], [0.8, -0.4]], dtype=torch.float64)
STDS = torch.tensor([[0.5, 0.3], [0.4, 0.6]], dtype=torch.float64)

MEAN = WEIGHTS @ MEANS
COVARIANCE = torch.einsum("k,ki,kj->ij", WEIGHTS, MEANS - MEAN, MEANS - MEAN) + torch.diag(WEIGHTS @ STDS**2)


def exact_x0(schedule: Schedule):
    """The network E[x0 | x_t] for x [N, 2], fed t - 1 as every network is."""

    def network(x, t):
        level = schedule.at(t.long() + 1).like(x)
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        means, variances = MEANS.to(x), (STDS**2).to(x)
        total = alpha**2 * variances + sigma**2  # [N, K, 2], of x_t in each component
        away = x[:, None] - alpha * means
        log_p = WEIGHTS.to(x).log() - 0.5 * (away**2 / total + total.log()).sum(-1)
        x0 = means + alpha * variances / total * away
        return (log_p.softmax(1)[..., None] * x0).sum(1)

    return network


def sample_mixture(n: int, generator: torch.Generator) -> torch.Tensor:
    """n draws [n, 2] from the mixture itself."""
    k = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    return MEANS[k] + STDS[k] * noise


def gaussian_x0(schedule: Schedule, variance: float):
    """The network E[x0 | x_t] for data N(0, variance) in every coordinate, of any shape."""

    def network(x, t):
        level = schedule.at(t.long() + 1).like(x)
        return level.alpha * variance / (level.alpha**2 * variance + level.sigma**2) * x

    return network


def gaussian_left(level: Level, variance: float) -> torch.Tensor:
    """The variance of p(x0 | x_t) for data N(0, variance)."""
    return variance * level.sigma**2 / (level.alpha**2 * variance + level.sigma**2)


def wavy(schedule: Schedule, predicts: str, variance: str) -> Denoiser:
    """A denoiser whose network treats all pictures and positions alike, and depends on all it is given."""

    def network(x, t, shift=None):
        out = torch.sin(2 * x + t.view(-1, *[1] * (x.dim() - 1)).to(x) / 300)
        if shift is not None:
            out = out + shift.view(-1, *[1] * (x.dim() - 1))
        return torch.cat([out, out.cos()], dim=1) if variance == "learned" else out

    return Denoiser(network, schedule, predicts, variance)
