"""One U-Net for ADM, GLIDE, the unCLIP decoder and the upsamplers.

Dhariwal & Nichol 2021 (ADM), Nichol et al. 2021 (GLIDE), Ramesh et al. 2022 (unCLIP, sec. 2.1).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Depth, Rows, Width
from .blocks import Refine, Upsample, group_norm, normal, time_mlp, timestep_embedding, zero
from .encoder import Block, EncoderConfig, attention, encoder, middle, res_block


class UNetConfig(EncoderConfig):
    out_channels: Width = 3  # 6 with a learned variance
    refine: Width | None = None  # channels of two last convolutions on whole pixels, which
    # see the input too; None: none (with pixel_unshuffle)
    num_heads_up: Depth | None = None  # num_heads on the way up; None: as on the way down
    context_channels: Width | None = None  # width of the tokens that join the keys
    image_embed_dim: Width | None = None  # of the CLIP image embedding; None: no such input
    image_tokens: int = Field(4, ge=0, le=1024)  # context tokens made from the image embedding
    image_norm: bool = False  # a layer norm over what is made of the image embedding (Kandinsky 2.2)
    text_dim: Width | None = None  # width of the text tokens; None: no such input
    text_project: bool = True  # False: text tokens are context as they come
    text_embed_dim: Width | None = None  # of a vector for the whole text; None: no such
    classes: Rows | None = None  # number of classes; None: no such input

    @model_validator(mode="after")
    def _consistent(self) -> "UNetConfig":
        if self.text_dim is not None and self.context_channels is None:
            raise ValueError("text_dim needs context_channels")
        if self.text_dim and not self.text_project and self.text_dim != self.context_channels:
            raise ValueError("text_project false needs text_dim equal to context_channels")
        if self.num_heads_up and not self.num_heads:
            raise ValueError("num_heads_up needs num_heads")
        return self

    def heads(self, channels: int, up: bool = False) -> int:
        return up and self.num_heads_up or super().heads(channels)


def decoder(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """The way up; each block takes the output of its twin on the way down as more channels."""
    skips = list(skips)
    channels = skips[-1]
    blocks = []
    for level, width in reversed(list(enumerate(config.widths))):
        for i in range(config.num_res_blocks + 1):
            block = Block([res_block(config, channels + skips.pop(), width)])
            if config.grid_sizes[level] in config.attention_resolutions:
                block.append(attention(config, width, config.context_channels, up=True))
            if level > 0 and i == config.num_res_blocks:
                if config.updown_in_blocks:
                    block.append(res_block(config, width, width, "up"))
                else:
                    block.append(Upsample(width, config.conv_resample))
            blocks.append(block)
            channels = width
    return nn.ModuleList(blocks)


class UNet(nn.Module):
    """Maps a picture and a time to a picture, given any of: image embedding, text, class."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        emb, context = config.emb_channels, config.context_channels
        self.time = time_mlp(config.channels, emb)
        if config.classes is not None:
            self.classes = nn.Embedding(config.classes, emb)
        if config.text_embed_dim is not None:
            self.text_embed = nn.Linear(config.text_embed_dim, emb)
        if config.text_dim is not None and context is not None and config.text_project:
            self.text = nn.Sequential(nn.Linear(config.text_dim, context), nn.LayerNorm(context))
        if config.image_embed_dim is not None:
            self.null_image = normal(config.image_embed_dim)
            self.image_embed = nn.Linear(config.image_embed_dim, emb)
            if context is not None and config.image_tokens:
                self.image_tokens = nn.Linear(config.image_embed_dim, context * config.image_tokens)
            self.image_norms = nn.ModuleDict()
            if config.image_norm:
                self.image_norms["embed"] = nn.LayerNorm(emb)
                if hasattr(self, "image_tokens"):
                    self.image_norms["tokens"] = nn.LayerNorm(context)
        self.encoder, skips = encoder(config, context)
        self.middle = middle(config, skips[-1], context)
        self.decoder = decoder(config, skips)
        out_channels = (config.refine or config.out_channels) * config.pixel_unshuffle**2
        self.norm = group_norm(config.widths[0], config.norm_groups)
        self.out = nn.Conv2d(config.widths[0], out_channels, 3, padding=1)
        if config.refine is None:
            zero(self.out)
        else:
            self.refine = Refine(config.refine, config.in_channels, config.out_channels)
        self.to(memory_format=torch.channels_last)  # in which convolutions are fastest

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        image_embed: Tensor | None = None,
        has_image: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        text_embed: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """x: [N, Cin, H, W]; t: float [N]. Returns [N, Cout, H, W].

        image_embed: [N, D]. has_image: bool [N], False = the learned null embedding takes its
            place. Without an image_embed the null embedding serves all.
        text: [N, L, text_dim]. text_mask: bool [N, L], True = a token; all False = no text.
        text_embed: [N, text_embed_dim], one vector for the whole text.
        classes: int64 [N], -1 = none.

        Raises ValueError for an input that the configuration does not provide for.
        """
        self._check(image_embed=image_embed, text=text, text_embed=text_embed, classes=classes)
        k = self.config.pixel_unshuffle
        image = self._image(image_embed, has_image, len(x))  # [N, D] or None
        emb = F.silu(self._embedding(t, image, text_embed, classes))  # [N, E]
        context, mask = self._context(image, text, text_mask)  # [N, L, K], [N, L]
        h = F.pixel_unshuffle(x, k) if k > 1 else x  # [N, kkCin, H/k, W/k]
        skips = []
        for block in self.encoder:
            h = block(h, emb, context, mask)  # [N, C, H', W']
            skips.append(h)
        h = self.middle(h, emb, context, mask)  # [N, C, H', W']
        for block in self.decoder:
            h = torch.cat([h, skips.pop()], dim=1)  # [N, C + C', H', W']
            h = block(h, emb, context, mask)  # [N, C, H', W']
        h = self.out(F.silu(self.norm(h)))  # [N, kkCout, H/k, W/k]
        h = F.pixel_shuffle(h, k) if k > 1 else h  # [N, Cout, H, W]
        return h if self.config.refine is None else self.refine(h, x)  # [N, Cout, H, W]

    def _image(self, image_embed: Tensor | None, has_image: Tensor | None, n: int) -> Tensor | None:
        """The image embedding, or the learned one where there is none: [N, D]."""
        if self.config.image_embed_dim is None:
            return None
        if image_embed is None:
            return self.null_image.expand(n, -1)
        if has_image is None:
            return image_embed
        return torch.where(has_image[:, None], image_embed, self.null_image)

    def _embedding(
        self, t: Tensor, image: Tensor | None, text_embed: Tensor | None, classes: Tensor | None
    ) -> Tensor:
        """Everything that is one vector a picture, summed: [N, E]."""
        emb = self.time(timestep_embedding(t, self.config.channels))  # [N, E]
        if image is not None:
            emb = emb + self._normed("embed", self.image_embed(image))  # [N, E]
        if text_embed is not None:
            emb = emb + self.text_embed(text_embed)  # [N, E]
        if classes is not None:
            known = (classes >= 0)[:, None]  # [N, 1]
            emb = emb + self.classes(classes.clamp(min=0)) * known  # [N, E]
        return emb

    def _context(
        self, image: Tensor | None, text: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The tokens [text; image] that join the keys, [N, L, K], and their mask, [N, L]."""
        tokens, mask = [], None
        if text is not None:
            tokens.append(self.text(text) if self.config.text_project else text)
            mask = text_mask
        if image is not None and hasattr(self, "image_tokens"):
            count = self.config.image_tokens
            made = rearrange(self.image_tokens(image), "n (k l) -> n l k", l=count)
            tokens.append(self._normed("tokens", made))
            mask = None if mask is None else F.pad(mask, (0, count), value=True)
        return (torch.cat(tokens, dim=1), mask) if tokens else (None, None)

    def _normed(self, name: str, x: Tensor) -> Tensor:
        """What is made of the image embedding, with its layer norm if the network has one."""
        return self.image_norms[name](x) if name in self.image_norms else x

    def _check(self, **inputs: Tensor | None) -> None:
        config = self.config
        provided = {
            "image_embed": config.image_embed_dim,
            "text": config.text_dim,
            "text_embed": config.text_embed_dim,
            "classes": config.classes,
        }
        for name, value in inputs.items():
            if value is not None and provided[name] is None:
                raise ValueError(f"this U-Net was built without the input {name!r}")


def either(first: UNet, last: UNet, x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """By the second network what takes the step to data (t = 0), by the first the rest."""
    final = t == 0
    if final.all() or not final.any():
        return (last if final.all() else first)(x, t, **inputs)
    parts = [(last, final), (first, ~final)]  # both, in training
    out = [network(x[rows], t[rows], **{k: v[rows] for k, v in inputs.items()}) for network, rows in parts]
    return torch.cat(out)[torch.cat([rows.nonzero()[:, 0] for _, rows in parts]).argsort()]
