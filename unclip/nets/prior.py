"""The prior's transformer (Ramesh et al. 2022, unCLIP, sec. 2.2)."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..config import Chance, Config, Depth, Width
from .attention import Backend
from .blocks import TransformerBlock, normal, time_mlp, timestep_embedding, zero


class PriorConfig(Config):
    embed_dim: Width  # of the image embedding and of the text embedding
    text_dim: Width  # width of the text tokens that come in
    text_length: Width  # text tokens, padding included
    width: Width  # channels
    layers: Depth
    heads: Depth
    dropout: Chance = 0.0  # chance, on every residual branch
    timed: bool = True  # a position says the time; False: an embedding is predicted in one step (ECLIPSE)
    null_text: bool = True  # a learned embedding of no text; False: encode "" instead
    memory: int = Field(0, ge=0, le=1 << 24)  # slots that recall embeddings of known texts; 0 = none
    memory_scale: float = Field(25.0, gt=0, le=1e7)  # how sharply: what a cosine of texts is multiplied by
    attention: Backend = "sdpa"


class Memory(nn.Module):
    """Known texts and their image embeddings, recalled by likeness: softmax(scale <text, key>) values.

    One step of a modern Hopfield network (Ramsauer et al. 2021, eq. 3); diffusion conditioned on what
    is retrieved is that of Blattmann et al. 2022. A word that no caption holds recalls its neighbours.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, slots: int, embed_dim: int, scale: float):
        super().__init__()
        self.scale = scale
        self.register_buffer("keys", torch.zeros(slots, embed_dim))
        self.register_buffer("values", torch.zeros(slots, embed_dim))

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Take K <= slots texts and what to recall, both [K, E]; spare slots repeat them."""
        if keys.shape != values.shape or not 0 < len(keys) <= len(self.keys):
            raise ValueError(
                f"a memory of {len(self.keys)} slots cannot hold texts {tuple(keys.shape)} "
                f"with embeddings {tuple(values.shape)}"
            )
        rows = torch.arange(len(self.keys), device=keys.device) % len(keys)
        self.keys.copy_(F.normalize(keys, dim=-1)[rows])
        self.values.copy_(values[rows])

    def forward(self, text_embed: Tensor) -> Tensor:
        """[N, E] -> [N, E]"""
        likeness = F.normalize(text_embed, dim=-1) @ self.keys.T  # [N, K]
        return (self.scale * likeness).softmax(-1) @ self.values  # [N, E]


class OfText(nn.Module):
    """What networks share that are told of a text: what they hear of it, and who attends to whom."""

    config: PriorConfig
    memory: Memory | None
    null_text: Tensor

    def checked_length(self, text: Tensor) -> int:
        """How many text tokens [N, L, W] there are; ``ValueError`` for more than the network takes."""
        if text.shape[1] > self.config.text_length:
            raise ValueError(f"{text.shape[1]} text tokens; this prior takes {self.config.text_length}")
        return text.shape[1]

    def heard(
        self, text_embed: Tensor, text_mask: Tensor, has_text: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The embedding [N, E] and the tokens' mask [N, L] where there is a text, and what the memory recalls
        of it [N, E]; ``ValueError`` for has_text without a null text.
        """
        recalled = None if self.memory is None else self.memory(text_embed)  # [N, E]
        if has_text is not None:
            if not self.config.null_text:
                raise ValueError("has_text needs a network that was built with null_text")
            text_embed = torch.where(has_text[:, None], text_embed, self.null_text)  # [N, E]
            text_mask = text_mask & has_text[:, None]  # [N, L]
            recalled = None if recalled is None else recalled * has_text[:, None]  # [N, E]
        return text_embed, text_mask, recalled

    @staticmethod
    def causal(text_mask: Tensor, size: int) -> Tensor:
        """Who attends to whom among ``size`` positions, of which the first are the text's: [N, L] ->
        [N, 1, size, size].
        """
        keys = F.pad(text_mask, (0, size - text_mask.shape[1]), value=True)  # [N, size]
        causal = keys.new_ones(size, size).tril()
        # Padding attends to itself, since a softmax over no key at all is not a number.
        itself = torch.eye(size, dtype=torch.bool, device=keys.device)
        return ((keys[:, None, :] & causal) | itself)[:, None]


class PriorTransformer(OfText):
    """A causal transformer that denoises an image embedding given a text.

    The sequence is: text tokens, text embedding, timestep, noised image embedding, learned query;
    the answer is read at the query. With a memory, what it recalls comes before the noised embedding,
    and the answer is a correction to it.
    """

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.text = nn.Linear(config.text_dim, width)
        self.text_embed = nn.Linear(config.embed_dim, width)
        self.time = time_mlp(width, width) if config.timed else None
        self.image_embed = nn.Linear(config.embed_dim, width)
        self.query = normal(width)
        self.memory = None
        if config.memory:
            self.memory = Memory(config.memory, config.embed_dim, config.memory_scale)
            self.recalled = nn.Linear(config.embed_dim, width)
        self.tail = 3 + config.timed + bool(config.memory)  # what follows the text tokens
        self.position = normal(config.text_length + self.tail, width)
        if config.null_text:
            self.null_text = normal(config.embed_dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.heads, config.dropout, config.attention)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out = zero(nn.Linear(width, config.embed_dim))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text_embed: Tensor,
        text: Tensor,
        text_mask: Tensor,
        has_text: Tensor | None = None,
    ) -> Tensor:
        """Predicts an embedding [N, E] from a noised one.

        x: [N, E]; t: float [N], unused unless ``timed``; text_embed: [N, E];
        text: [N, L, text_dim], L <= text_length:
        columns of padding may be left out, which changes nothing but the time it takes;
        text_mask: bool [N, L], True = a token of the text;
        has_text: bool [N], False = the learned embedding of no text; None = all have one.

        Raises ValueError when L exceeds the configured length, or when has_text is given and
        the network was built without a null text.
        """
        length = self.checked_length(text)
        text_embed, text_mask, recalled = self.heard(text_embed, text_mask, has_text)
        tail = [
            self.text_embed(text_embed),  # [N, W]
            *([] if self.time is None else [self.time(timestep_embedding(t, self.config.width))]),  # [N, W]
            *([] if recalled is None else [self.recalled(recalled)]),  # [N, W]
            self.image_embed(x),  # [N, W]
            self.query.expand(len(x), -1),  # [N, W]
        ]
        h = torch.cat([self.text(text), torch.stack(tail, dim=1)], dim=1)  # [N, L+T, W]
        h = h + torch.cat([self.position[:length], self.position[-self.tail :]])  # [N, L+T, W]
        mask = self.causal(text_mask, h.shape[1])  # [N,1,L+T,L+T]
        for block in self.blocks:
            h = block(h, mask)  # [N, L+T, W]
        out = self.out(self.norm(h[:, -1]))  # [N, E]
        return out if recalled is None else out + recalled  # [N, E]
