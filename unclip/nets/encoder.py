"""The way down of a U-Net, which a classifier has too: its configuration, its blocks, its middle."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Chance, Config, Depth, Side, Width
from .attention import Backend
from .blocks import Downsample, ResBlock, SpatialAttention, Unit


class EncoderConfig(Config):
    """The way down, which a U-Net and a classifier have in common."""

    image_size: Side  # pixels a side of the picture
    in_channels: Width = 3  # with those of a low-resolution picture or a mask
    channels: Width  # of the first level; the others are multiples
    # One for each level; each level halves the grid.
    channel_mult: tuple[Annotated[float, Field(gt=0, le=64)], ...] = Field(min_length=1, max_length=12)
    num_res_blocks: Annotated[int, Field(ge=1, le=64)]  # a level, going down; one more going up
    attention_resolutions: tuple[Side, ...] = ()  # grid sizes: image_size / pixel_unshuffle / 2^i
    middle_attention: bool = True  # attention at the smallest grid, in the middle
    head_channels: Width = 64  # channels of an attention head
    num_heads: Depth | None = None  # a fixed number of heads instead
    dropout: Chance = 0.0  # chance, in the residual blocks
    norm_groups: Width = 32  # of the group norms; see `group_norm` for speed
    scale_shift: bool = True  # how the time embedding acts; False: it is added
    updown_in_blocks: bool = True  # False: plain convolutions, as in improved DDPM
    conv_resample: bool = True  # False: none at all, where they would be plain
    pixel_unshuffle: Annotated[int, Field(ge=1, le=64)] = 1  # k x k pixels become channels inside the network
    attention: Backend = "sdpa"

    @model_validator(mode="after")
    def _grids_exist(self) -> "EncoderConfig":
        if not all(1 <= width <= 1 << 16 for width in self.widths):
            raise ValueError(f"channel_mult makes levels of {self.widths} channels")
        if self.image_size % self.multiple:
            raise ValueError(f"image_size {self.image_size} is no multiple of {self.multiple}")
        missing = set(self.attention_resolutions) - set(self.grid_sizes)
        if missing:
            raise ValueError(f"attention_resolutions {sorted(missing)} do not occur: {self.grid_sizes} do")
        return self

    @property
    def multiple(self) -> int:
        """Of pixels, that a side has."""
        return self.pixel_unshuffle * 2 ** (len(self.channel_mult) - 1)

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """Side of the grid at each level."""
        side = self.image_size // self.pixel_unshuffle
        return tuple(side // 2**level for level in range(len(self.channel_mult)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level."""
        return tuple(int(mult * self.channels) for mult in self.channel_mult)

    def heads(self, channels: int, up: bool = False) -> int:
        """Attention heads at a level of so many channels. up: on the way up."""
        return self.num_heads or max(1, channels // self.head_channels)

    @property
    def emb_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.channels


class Block(Unit, nn.ModuleList):
    """Layers in a row; each takes what it needs of the embedding and the context."""

    def compute(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialAttention):
                x = layer(x, context, mask)
            else:
                x = layer(x)
        return x


def res_block(
    config: EncoderConfig, channels: int, out_channels: int, resample: Literal["up", "down"] | None = None
) -> ResBlock:
    return ResBlock(
        channels,
        out_channels,
        config.emb_channels,
        dropout=config.dropout,
        scale_shift=config.scale_shift,
        resample=resample,
        groups=config.norm_groups,
    )


def attention(
    config: EncoderConfig, channels: int, context: int | None, up: bool = False
) -> SpatialAttention:
    heads = config.heads(channels, up)
    return SpatialAttention(channels, heads, context, config.attention, config.norm_groups)


def encoder(config: EncoderConfig, context: int | None) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the channels that each of its blocks puts out.

    context: width of the tokens that join the keys of attention; None = pixels only.
    """
    channels = config.widths[0]
    in_channels = config.in_channels * config.pixel_unshuffle**2
    blocks = [Block([nn.Conv2d(in_channels, channels, 3, padding=1)])]
    skips = [channels]
    for level, width in enumerate(config.widths):
        for _ in range(config.num_res_blocks):
            block = Block([res_block(config, channels, width)])
            if config.grid_sizes[level] in config.attention_resolutions:
                block.append(attention(config, width, context))
            blocks.append(block)
            channels = width
            skips.append(channels)
        if level < len(config.widths) - 1:
            if config.updown_in_blocks:
                blocks.append(Block([res_block(config, channels, channels, "down")]))
            else:
                blocks.append(Block([Downsample(channels, config.conv_resample)]))
            skips.append(channels)
    return nn.ModuleList(blocks), skips


def middle(config: EncoderConfig, channels: int, context: int | None) -> Block:
    """Two residual blocks at the smallest grid, with attention between them."""
    block = Block([res_block(config, channels, channels), res_block(config, channels, channels)])
    if config.middle_attention:
        block.insert(1, attention(config, channels, context))
    return block
