"""Inpainting (Nichol et al. 2021, GLIDE, section 4.3): what is known of a picture joins the input.

`known` is [N,4,S,S]: the picture where it is known and 0 elsewhere, and a mask, 1 = known. Of latents it is
[N,L+1,s,s].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.noise import Random, rand
from ..nets.autoencoder import Autoencoder


def known_part(image: Tensor | None, mask: Tensor | None, like: Tensor) -> Tensor:
    """image [N,3,S,S] in [-1,1] and mask [N,1,S,S] -> known [N,4,S,S], of the device and type of ``like``.

    One of each serves all N = len(like). No image = nothing is known; no mask = all of it is.
    """
    n, _, height, width = like.shape
    if image is None:
        return like.new_zeros(n, 4, height, width)
    image = image.to(like).expand(n, -1, -1, -1)
    mask = image.new_ones(n, 1, height, width) if mask is None else mask.to(like).expand(n, -1, -1, -1)
    if image.shape[1:] != (3, height, width) or mask.shape[1:] != (1, height, width):
        raise ValueError(
            f"inpainting takes a picture [N,3,{height},{width}] and a mask [N,1,{height},"
            f"{width}], not {list(image.shape)} and {list(mask.shape)}"
        )
    return torch.cat([image * mask, mask], dim=1)


def known_latents(
    image: Tensor | None, mask: Tensor | None, like: Tensor, autoencoder: Autoencoder
) -> Tensor:
    """The same as ``known_part`` of latents, [N,L+1,s,s].

    As Kandinsky has it, the whole picture is encoded, and a latent is known if all of its pixels and its
    neighbours' are.
    """
    whole, known = known_part(image, None, like)[:, :3], known_part(image, mask, like)[:, 3:]
    latents = autoencoder.encode(whole)  # [N,L,s,s]
    known = known_at(known, autoencoder.config.factor)
    known = -F.max_pool2d(-known, 3, stride=1, padding=1)
    return torch.cat([latents * known, known], dim=1)


def known_at(known: Tensor, factor: int) -> Tensor:
    """A mask [N,1,S,S], 1 = known, of places that stand for ``factor`` pixels a side, all of them known."""
    return -F.max_pool2d(-known.float(), factor)


def put_back(picture: Tensor, known: Tensor | None) -> Tensor:
    """The picture [N,3,S,S] with what is known of it in its place, to the bit where the mask is 1."""
    if known is None:
        return picture
    image, mask = known[:, :-1], known[:, -1:]
    return image + (1 - mask) * picture


def erase(known: Tensor, generator: Random = None) -> Tensor:
    """Training only: forget a random rectangle of each, of any size up to the whole picture."""
    n, _, height, width = known.shape
    forgotten = torch.ones(n, 1, 1, 1, dtype=torch.bool, device=known.device)
    for dim, length in ((2, height), (3, width)):
        ends = rand((n, 2), known.device, generator)
        ends = (ends * (length + 1)).floor().sort(dim=1).values
        # Three in ten span all of a side, a tenth so both: then nothing is known, as without a picture.
        whole = rand((n, 1), known.device, generator) < 0.3
        ends = torch.where(whole, ends.new_tensor([0, length]), ends)
        at = torch.arange(length, device=known.device)
        inside = (at >= ends[:, :1]) & (at < ends[:, 1:])  # [N, length]
        forgotten = forgotten & (inside[:, None, :, None] if dim == 2 else inside[:, None, None, :])
    return known * ~forgotten
