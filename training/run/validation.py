"""Loss terms of the averaged weights on held-out data, at fixed t and noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from unclip.diffusion.noise import fold
from unclip.stages import Stage

from .curves import Means
from .examples import Examples


@torch.no_grad()
def validate(
    module: Stage,
    batches: Sequence[Examples],
    timesteps: int,
    accelerator: Accelerator,
    sharded: bool = False,
) -> dict[str, float]:
    """Means by name, over all t and by quartile; {} if there is nothing to validate on.

    The batches are shared out among the processes; with shared-out weights all compute all, since they
    need each other's parts.
    """
    rank, world = (0, 1) if sharded else (accelerator.process_index, accelerator.num_processes)
    done = []
    for number, examples in list(enumerate(batches))[rank::world]:
        x0, n = examples.x0, len(examples)
        generator = torch.Generator(x0.device).manual_seed(fold(1, number))
        t = 1 + torch.arange(n, device=x0.device) * timesteps // n  # every level alike
        noise = torch.randn(x0.shape, device=x0.device, generator=generator)
        with accelerator.autocast():
            terms = module(x0, t, noise, examples.conditions)
        terms = {name: term.float().cpu() for name, term in terms.items() if name != "loss"}
        done.append((number, terms, t.cpu()))
    if not sharded:
        done = sorted(gather_object(done), key=lambda part: part[0])
    means = Means(timesteps)
    for _, terms, t in done:
        means.add(terms, t)
    return means.take()
