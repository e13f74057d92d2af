"""The text transformer of a GLIDE decoder (Nichol et al. 2021, sec. 4)."""

import torch
from torch import Tensor, nn

from ..config import Chance, Config, Depth, Rows, Width
from .attention import Backend
from .blocks import TransformerBlock, normal


class TextConfig(Config):
    vocab_size: Rows  # number of token ids
    length: Width  # tokens a text is padded to
    width: Width  # channels
    layers: Depth
    heads: Depth
    dropout: Chance = 0.0  # chance, on every residual branch
    padding: bool = True  # False: a text is padded with its tokens, whatever the mask says
    final_norm: bool = True  # a layer norm at the end
    attention: Backend = "sdpa"


class TextTransformer(nn.Module):
    """Tokens -> one vector and one vector a token.

    A position past the text holds a learned padding embedding of that position (with
    ``padding``; else what the token there says). It is attended to, so that an empty text is a
    learned input too.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.token.weight, std=0.02)
        self.position = normal(config.length, config.width)
        if config.padding:
            self.padding = normal(config.length, config.width)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.heads, config.dropout, config.attention)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width) if config.final_norm else nn.Identity()

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """tokens: int64 [N, L]; mask: bool [N, L], False = padding, whatever the token is.

        Returns the pooled vector, which is the last position's, [N, W], and all, [N, L, W].
        Raises ValueError unless L is the configured length.
        """
        if tokens.shape[1] != self.config.length:
            raise ValueError(f"{tokens.shape[1]} tokens a text, not {self.config.length}")
        x = self.token(tokens) + self.position  # [N, L, W]
        if self.config.padding:
            x = torch.where(mask[..., None], x, self.padding)  # [N, L, W]
        for block in self.blocks:
            x = block(x)  # [N, L, W]
        x = self.norm(x)  # [N, L, W]
        return x[:, -1], x
