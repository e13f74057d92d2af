"""Which noise levels a training batch sees."""

from __future__ import annotations

import torch
from torch import Tensor

from .noise import Random, rand


def uniform(n: int, timesteps: int, source: Random = None) -> Tensor:
    """t [n] int64, each of 1..timesteps equally likely (Ho et al. 2020, algorithm 1)."""
    return 1 + (timesteps * rand((n,), _place(source), source)).long()


def _place(source: Random) -> torch.device | str:
    return "cpu" if source is None else source.device


class LossSecondMoment:
    """Importance sampling of t: p_t is proportional to sqrt(E[L_t^2]).

    Nichol & Dhariwal 2021, section 3.3. The expectation is over the last losses seen at each t;
    until every t has its full history, p is uniform. A loss at t counts `weights(t)`, so that
    its mean is still that of uniform t, with less variance.
    """

    def __init__(
        self,
        timesteps: int,  # T
        history: int = 10,  # losses remembered at each t
        uniform_share: float = 0.001,  # of p that is uniform, so that no t is ever left out
    ) -> None:
        if timesteps < 1 or history < 1:
            raise ValueError(f"timesteps and history must be at least 1: {timesteps}, {history}")
        if not 0 <= uniform_share <= 1:
            raise ValueError(f"uniform_share must be between 0 and 1, got {uniform_share}")
        self.uniform_share = uniform_share
        self.losses = torch.zeros(timesteps, history, dtype=torch.float64)  # a ring at each t
        self.counts = torch.zeros(timesteps, dtype=torch.int64)  # losses ever seen at each t

    def probabilities(self) -> Tensor:
        """p [T] float64, of t = 1..T."""
        timesteps, history = self.losses.shape
        flat = torch.full((timesteps,), 1 / timesteps, dtype=torch.float64)
        if (self.counts < history).any():
            return flat
        p = self.losses.square().mean(1).sqrt()
        return (1 - self.uniform_share) * p / p.sum() + self.uniform_share * flat

    def draw(self, n: int, source: Random = None) -> Tensor:
        """t [n] int64 in 1..T, on the source's device: where the uniform numbers fall among the sums of p."""
        device = _place(source)
        sums = self.probabilities().cumsum(0)
        drawn = rand((n,), device, source).cpu().double() * sums[-1]
        return (torch.searchsorted(sums, drawn, right=True) + 1).clamp(max=len(sums)).to(device)

    def weights(self, t: Tensor) -> Tensor:
        """1 / (T p_t) for t int64 [n] in 1..T: [n] float64 on the CPU."""
        p = self.probabilities()
        return 1 / (len(p) * p[t.cpu() - 1])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Remember the unweighted losses [n] at t int64 [n]: those of all processes, in one order.

        ValueError for shapes that differ and for a t outside 1..T.
        """
        timesteps, history = self.losses.shape
        if t.dim() != 1 or t.shape != losses.shape:
            raise ValueError(f"t is {tuple(t.shape)}, but the losses are {tuple(losses.shape)}")
        index, losses = t.cpu() - 1, losses.detach().cpu().double()
        if len(index) and (index.min() < 0 or index.max() >= timesteps):
            raise ValueError(f"t must be in 1..{timesteps}, got {t.tolist()}")
        order = index.argsort(stable=True)
        index, losses = index[order], losses[order]
        first, end = (torch.searchsorted(index, index, right=right) for right in (False, True))
        place = torch.arange(len(index))
        slot = (self.counts[index] + place - first) % history
        last = end - place <= history  # of more than the ring holds, the last stay
        self.losses[index[last], slot[last]] = losses[last]
        self.counts += torch.bincount(index, minlength=timesteps)

    def state_dict(self) -> dict[str, Tensor]:
        """What `load_state_dict` takes up again."""
        return {"losses": self.losses.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state; ValueError if it is of another T or history."""
        if state["losses"].shape != self.losses.shape:
            raise ValueError(
                f"the saved losses are {tuple(state['losses'].shape)}, not {tuple(self.losses.shape)}"
            )
        self.losses, self.counts = state["losses"].clone(), state["counts"].clone()
