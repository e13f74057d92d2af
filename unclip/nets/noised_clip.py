"""A CLIP of noised pictures: two transformers that meet in one embedding (Nichol et al. 2021, sec. 4.2).

The text's is causal and read at its last token; the picture's sees the noise level as one more token,
from which it is read.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import model_validator
from torch import Tensor, nn

from ..config import Config, Depth, Factor, Rows, Side, Timesteps, Width
from .attention import Backend, attend
from .blocks import Unit, normal

MEAN = (122.77093945, 116.74601272, 104.09373519)  # of CLIP's pictures in 0..255, by channel
STD = (68.50053285, 66.63215831, 70.32316309)


class TowerConfig(Config):
    width: Width  # channels
    layers: Depth
    heads: Depth


class NoisedClipConfig(Config):
    embed_dim: Width  # of the embedding that both make
    image: TowerConfig
    image_size: Side  # pixels a side
    patch_size: Side  # pixels a side of what becomes one token
    timesteps: Timesteps = 1000  # noise levels that the picture may have
    text: TowerConfig
    vocab_size: Rows  # rows of the token embedding; may be more than there are tokens
    length: Width = 77  # tokens a text is padded to
    logit_scale: Factor = 100.0  # on the cosine of two embeddings; learned, then fixed
    attention: Backend = "sdpa"

    @model_validator(mode="after")
    def _they_divide(self) -> "NoisedClipConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"patches of {self.patch_size} pixels do not divide {self.image_size}")
        for tower in (self.image, self.text):
            if tower.width % tower.heads:
                raise ValueError(f"{tower.heads} heads do not divide a width of {tower.width}")
        return self


class Block(Unit):
    """Pre-norm attention and a GELU MLP of 4 times the width; keys have no bias."""

    def __init__(self, width: int, heads: int, backend: Backend):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def compute(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: [N, L, W]; mask as in `attend`. Returns [N, L, W]."""
        h = self.norm1(x)  # [N, L, W]
        q, k, v = (
            rearrange(part(h), "n l (heads d) -> n l heads d", heads=self.heads)
            for part in (self.q, self.k, self.v)
        )  # [N, L, heads, D]
        x = x + self.out(attend(q, k, v, mask, self.backend))  # [N, L, W]
        return x + self.mlp(self.norm2(x))  # [N, L, W]


class Tower(nn.Module):
    """What both have: positions, blocks, and the way out to the embedding."""

    def __init__(self, config: TowerConfig, length: int, embed_dim: int, backend: Backend):
        super().__init__()
        self.position = normal(length, config.width, std=0.01)
        blocks = [Block(config.width, config.heads, backend) for _ in range(config.layers)]
        for block in blocks:
            for name in ("out.weight", "mlp.2.weight"):
                nn.init.normal_(block.get_parameter(name), std=config.width**-0.5 / (2 * config.layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, embed_dim, bias=False)


class TextTower(Tower):
    """Tokens -> the embedding of a text, not normalised."""

    def __init__(self, config: NoisedClipConfig):
        super().__init__(config.text, config.length, config.embed_dim, config.attention)
        self.token = nn.Embedding(config.vocab_size, config.text.width)
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens: int64 [N, L]; lengths: int64 [N], tokens of each text. Returns [N, D].

        Raises ValueError unless L is the configured length.
        """
        if tokens.shape[1] != len(self.position):
            raise ValueError(f"{tokens.shape[1]} tokens a text, not {len(self.position)}")
        x = self.token(tokens) + self.position  # [N, L, W]
        causal = torch.ones(len(x[0]), len(x[0]), dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, causal[None, None])  # [N, L, W]
        last = x[torch.arange(len(x), device=x.device), lengths - 1]  # [N, W]
        return self.out(self.norm(last))  # [N, D]


class ImageTower(Tower):
    """A noised picture and its noise level -> its embedding, not normalised."""

    def __init__(self, config: NoisedClipConfig):
        tokens = 1 + (config.image_size // config.patch_size) ** 2
        super().__init__(config.image, tokens, config.embed_dim, config.attention)
        width, patch = config.image.width, config.patch_size
        self.image_size = config.image_size
        self.time = nn.Embedding(config.timesteps, width)
        nn.init.normal_(self.time.weight, std=width**-0.5)
        self.patches = nn.Conv2d(3, width, patch, patch, bias=False)
        self.norm_in = nn.LayerNorm(width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: [N, 3, S, S], noised from pictures in [-1, 1]; t: int64 [N] from 0. Returns [N, D].

        Raises ValueError unless S is the configured size.
        """
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"a picture of {tuple(x.shape[-2:])} pixels; this CLIP takes {self.image_size}")
        mean, std = (torch.tensor(c, device=x.device).view(3, 1, 1) for c in (MEAN, STD))
        x = self.patches(((x + 1) * 127.5 - mean) / std)  # [N, W, S/P, S/P]
        x = rearrange(x, "n w y x -> n (y x) w")  # [N, L - 1, W]
        x = torch.cat([self.time(t)[:, None].to(x.dtype), x], dim=1)  # [N, L, W]
        x = self.norm_in(x + self.position)  # [N, L, W]
        for block in self.blocks:
            x = block(x, None)  # [N, L, W]
        return self.out(self.norm(x[:, 0]))  # [N, D]


class NoisedClipNet(nn.Module):
    """Both towers, and what their embeddings say about each other."""

    def __init__(self, config: NoisedClipConfig):
        super().__init__()
        self.config = config
        self.image, self.text = ImageTower(config), TextTower(config)

    def encode_image(self, x: Tensor, t: Tensor) -> Tensor:
        """x: [N, 3, S, S]; t: int64 [N], 0 = one step of noise. Returns float32 [N, D] of length 1."""
        return F.normalize(self.image(x, t).float(), dim=-1)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens: int64 [N, L]; lengths: int64 [N]. Returns float32 [N, D] of length 1."""
        return F.normalize(self.text(tokens, lengths).float(), dim=-1)
