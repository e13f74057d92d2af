"""OpenCLIP's plain transformer towers, weight for weight, without its seconds of imports.

Radford et al. 2021 (arXiv:2103.00020). The configuration and the names of the weights are
OpenCLIP's, so either code reads what the other wrote.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unclip.config import Config
from unclip.nets.attention import attend


class VisionConfig(Config):
    """A vision transformer; sizes in pixels."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    layers: int = 12
    head_width: int = 64
    mlp_ratio: float = 4.0


class TextConfig(Config):
    """A causal text transformer."""

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0


class ClipConfig(Config):
    """What OpenCLIP calls `model_cfg`, as far as these towers go."""

    embed_dim: int
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    quick_gelu: bool = False


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)        # [N, L, 3W]
        q, k, v = rearrange(qkv, "n l (three h d) -> three n l h d", three=3, h=self.heads)
        return self.out_proj(attend(q, k, v, mask))                      # [N, L, W]


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float, quick_gelu: bool) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, hidden))
        self.mlp.add_module("gelu", QuickGELU() if quick_gelu else nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(hidden, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, quick_gelu) for _ in range(layers)
        )
        for block in self.resblocks:
            for out in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.normal_(out.weight, std=(2 * layers * width) ** -0.5)
                nn.init.zeros_(out.bias)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.zeros_(block.mlp.c_fc.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    """Pictures [N, 3, S, S], already normalised, to features [N, embed_dim]."""

    def __init__(self, config: VisionConfig, embed_dim: int, quick_gelu: bool) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        patches = (config.image_size // patch) ** 2
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(patches + 1, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, config.layers, width // config.head_width, config.mlp_ratio, quick_gelu
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)                     # [N, P, W]
        start = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)   # [N, 1, W]
        x = torch.cat([start, x], dim=1) + self.positional_embedding     # [N, 1+P, W]
        x = self.transformer(self.ln_pre(x))                             # [N, 1+P, W]
        return self.ln_post(x[:, 0]) @ self.proj                         # [N, D]


class PlainClip(nn.Module):
    """Both towers; the text tower's parts lie at the top, as in OpenCLIP."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        text = config.text_cfg
        self.config = config
        self.visual = VisionTransformer(config.vision_cfg, config.embed_dim, config.quick_gelu)
        self.transformer = Transformer(
            text.width, text.layers, text.heads, text.mlp_ratio, config.quick_gelu
        )
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.randn(text.context_length, text.width) * 0.01)
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.randn(text.width, config.embed_dim) * text.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_image(self, images: Tensor) -> Tensor:
        """images: [N, 3, S, S], normalised. Returns [N, D], not normalised."""
        return self.visual(images)

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """ids: int64 [N, L], L up to the context length. Returns hidden states [N, L, W].

        They are causal: what follows a token, padding too, does not change its state.
        """
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:length]  # [N, L, W]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        return self.ln_final(self.transformer(x, causal[None, None]))    # [N, L, W]
