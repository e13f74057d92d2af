"""Film strips: pictures on their way out of the noise.

frames = []
pipeline.generate("a fish", watch=frames.append)
film_strip(frames, columns=8).save("strip.png")
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from PIL import Image

from ..data.images import grid
from ..diffusion.samplers import Step


def film_strip(
    steps: Iterable[Step],  # of any sampler, of pictures [N,3,S,S]
    columns: int = 8,  # steps shown, evenly spaced, the last among them; fewer if there are fewer
) -> Image.Image:
    """Two rows a picture: x_t, and below it the x0 that the step to it predicted; noise is on the left.

    Pictures of less than 64 pixels are enlarged. Raises ``ValueError`` for no steps or columns.
    """
    steps = list(steps)
    if not steps or columns < 1:
        raise ValueError(f"a film strip needs steps and columns; these are {len(steps)} and {columns}")
    columns = min(columns, len(steps))
    chosen = [steps[(k + 1) * len(steps) // columns - 1] for k in range(columns)]
    frames = torch.stack([torch.stack([step.x, step.x0], dim=1) for step in chosen], dim=2)  # [N,2,C,3,S,S]
    frames = frames.flatten(0, 2).float()
    frames = F.interpolate(frames, scale_factor=float(max(1, 64 // frames.shape[-1])), mode="nearest")
    return grid(frames, columns)
