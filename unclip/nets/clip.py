"""OpenCLIP's own towers, weight for weight, without its seconds of imports.

Radford et al. 2021 (arXiv:2103.00020). The configuration and the names of the weights are
OpenCLIP's, so either code reads what the other wrote.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Config
from .attention import attend
from .blocks import Unit, normal

Width = Annotated[int, Field(gt=0, le=2**16)]  # of a layer; no published CLIP has a tenth of that
Depth = Annotated[int, Field(gt=0, le=1024)]
Ratio = Annotated[float, Field(gt=0, le=64)]
Pixels = Annotated[int, Field(gt=0, le=2**14)]


class VisionConfig(Config):
    """A vision transformer, or a ResNet where `layers` holds its four depths; sizes in pixels."""

    image_size: Pixels = 224
    patch_size: Pixels = 16
    width: Width = 768
    layers: Depth | tuple[Depth, Depth, Depth, Depth] = 12
    head_width: Width = 64
    mlp_ratio: Ratio = 4.0
    patch_dropout: float = Field(0.0, ge=0, lt=1)  # share of a picture's patches left out in training

    @model_validator(mode="after")
    def _fits(self) -> Self:
        inside = self.width if isinstance(self.layers, int) else 32 * self.width
        if inside % self.head_width:
            raise ValueError(f"{inside} channels do not divide into heads of {self.head_width}")
        smallest = self.patch_size if isinstance(self.layers, int) else 32
        if self.image_size < smallest:
            raise ValueError(f"a picture of {self.image_size} pixels is smaller than a patch of {smallest}")
        return self


class TextConfig(Config):
    """A causal text transformer."""

    context_length: int = Field(77, ge=3, le=2**16)  # with the marks of start and end
    vocab_size: int = Field(49408, gt=0, le=2**22)
    width: Width = 512
    layers: Depth = 12
    heads: Width = 8
    mlp_ratio: Ratio = 4.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"{self.width} channels do not divide into {self.heads} heads")
        return self


class ClipConfig(Config):
    """What OpenCLIP calls `model_cfg`, as far as these towers go."""

    embed_dim: Width
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    quick_gelu: bool = False


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = normal(3 * width, width, std=width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # [N, L, 3W]
        q, k, v = rearrange(qkv, "n l (three h d) -> three n l h d", three=3, h=self.heads)
        return self.out_proj(attend(q, k, v, mask))  # [N, L, W]


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Sequential):
    c_fc: nn.Linear
    c_proj: nn.Linear

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.add_module("c_fc", nn.Linear(width, hidden))
        self.add_module("gelu", QuickGELU() if quick_gelu else nn.GELU())
        self.add_module("c_proj", nn.Linear(hidden, width))


class Block(Unit):
    def __init__(self, width: int, heads: int, mlp_ratio: float, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), quick_gelu)

    def compute(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, quick_gelu: bool) -> None:
        super().__init__()
        blocks = [Block(width, heads, mlp_ratio, quick_gelu) for _ in range(layers)]
        self.resblocks = nn.ModuleList(blocks)
        for block in blocks:
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

    def __init__(self, config: VisionConfig, layers: int, embed_dim: int, quick_gelu: bool) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        self.patch_dropout = config.patch_dropout
        patches = (config.image_size // patch) ** 2
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = normal(width, std=width**-0.5)
        self.positional_embedding = normal(patches + 1, width, std=width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, layers, width // config.head_width, config.mlp_ratio, quick_gelu
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = normal(width, embed_dim, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)  # [N, P, W]
        x = x + self.positional_embedding[1:]  # [N, P, W]
        if self.training and self.patch_dropout > 0:  # Li et al. 2022, arXiv:2212.00794
            left = max(1, round(x.shape[1] * (1 - self.patch_dropout)))
            order = torch.rand(x.shape[:2], device=x.device).argsort(1)[:, :left, None]
            x = x.gather(1, order.expand(-1, -1, x.shape[2]))  # [N, P', W]
        start = self.class_embedding + self.positional_embedding[0]  # [W]
        x = torch.cat([start.to(x.dtype).expand(len(x), 1, -1), x], dim=1)  # [N, 1+P', W]
        x = self.transformer(self.ln_pre(x))  # [N, 1+P, W]
        return self.ln_post(x[:, 0]) @ self.proj  # [N, D]


class Bottleneck(nn.Module):
    """He et al. 2015 (arXiv:1512.03385), shrinking by a mean before the last convolution."""

    def __init__(self, inside: int, planes: int, stride: int) -> None:
        super().__init__()
        out = 4 * planes
        self.conv1 = nn.Conv2d(inside, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shrink = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        nn.init.zeros_(self.bn3.weight)
        self.downsample = None
        if stride > 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))  # [N, P, S, S]
        y = self.shrink(F.relu(self.bn2(self.conv2(y))))  # [N, P, S', S']
        y = self.bn3(self.conv3(y))  # [N, 4P, S', S']
        x = x if self.downsample is None else self.downsample(self.shrink(x))
        return F.relu(x + y)  # [N, 4P, S', S']


class AttentionPool(nn.Module):
    """The mean asks all places: [N, C, S, S] -> [N, D]."""

    def __init__(self, places: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = normal(places + 1, width, std=width**-0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, out)
        for linear in (self.k_proj, self.q_proj, self.v_proj, self.c_proj):
            nn.init.normal_(linear.weight, std=width**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # [N, P, C]
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1)  # [N, 1+P, C]
        x = x + self.positional_embedding.to(x.dtype)
        q, k, v = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        q, k, v = (rearrange(y, "n l (h d) -> n l h d", h=self.heads) for y in (q, k, v))
        return self.c_proj(attend(q, k, v)[:, 0])  # [N, D]


class ModifiedResNet(nn.Module):
    """CLIP's ResNet: three convolutions first, means for strides, attention last. [N,3,S,S] -> [N,D]."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, config: VisionConfig, depths: Sequence[int], embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        inside = width
        for i, depth in enumerate(depths):
            blocks, planes = [], width * 2**i
            for j in range(depth):
                blocks.append(Bottleneck(inside, planes, 2 if i > 0 and j == 0 else 1))
                inside = 4 * planes
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        places = (config.image_size // 32) ** 2
        self.attnpool = AttentionPool(places, inside, inside // config.head_width, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # [N, W/2, S/2, S/2]
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)  # [N, W, S/4, S/4]
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # [N, 32W, S/32, S/32]
        return self.attnpool(x)  # [N, D]


class PlainClip(nn.Module):
    """Both towers; the text tower's parts lie at the top, as in OpenCLIP."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        text = config.text_cfg
        self.config = config
        vision = config.vision_cfg
        self.visual: VisionTransformer | ModifiedResNet
        if isinstance(vision.layers, int):
            self.visual = VisionTransformer(vision, vision.layers, config.embed_dim, config.quick_gelu)
        else:
            self.visual = ModifiedResNet(vision, vision.layers, config.embed_dim)
        self.transformer = Transformer(text.width, text.layers, text.heads, text.mlp_ratio, config.quick_gelu)
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = normal(text.context_length, text.width, std=0.01)
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = normal(text.width, config.embed_dim, std=text.width**-0.5)
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
        return self.ln_final(self.transformer(x, causal[None, None]))  # [N, L, W]
