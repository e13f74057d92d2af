"""The prior's transformer (Ramesh et al. 2022, unCLIP, sec. 2.2)."""

import torch
from torch import Tensor, nn

from unclip.config import Config
from unclip.nets.attention import Backend
from unclip.nets.blocks import TransformerBlock, normal, time_mlp, timestep_embedding, zero


class PriorConfig(Config):
    embed_dim: int                 # of the image embedding and of the text embedding
    text_dim: int                  # width of the text tokens that come in
    text_length: int               # text tokens, padding included
    width: int                     # channels
    layers: int
    heads: int
    dropout: float = 0.0           # chance, on every residual branch
    null_text: bool = True         # a learned embedding of no text; False: encode "" instead
    attention: Backend = "sdpa"


class PriorTransformer(nn.Module):
    """A causal transformer that denoises an image embedding given a text.

    The sequence is: text tokens, text embedding, timestep, noised image embedding, learned query;
    the answer is read at the query.
    """

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.text = nn.Linear(config.text_dim, width)
        self.text_embed = nn.Linear(config.embed_dim, width)
        self.time = time_mlp(width, width)
        self.image_embed = nn.Linear(config.embed_dim, width)
        self.query = normal(width)
        self.position = normal(config.text_length + 4, width)
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

        x: [N, E]; t: float [N]; text_embed: [N, E]; text: [N, L, text_dim], L <= text_length:
        columns of padding may be left out, which changes nothing but the time it takes;
        text_mask: bool [N, L], True = a token of the text;
        has_text: bool [N], False = the learned embedding of no text; None = all have one.

        Raises ValueError when L exceeds the configured length, or when has_text is given and
        the network was built without a null text.
        """
        config, length = self.config, text.shape[1]
        if length > config.text_length:
            raise ValueError(f"{length} text tokens; this prior takes {config.text_length}")
        if has_text is not None:
            if not config.null_text:
                raise ValueError("has_text needs a network that was built with null_text")
            text_embed = torch.where(has_text[:, None], text_embed, self.null_text)  # [N, E]
            text_mask = text_mask & has_text[:, None]                                # [N, L]
        tail = [
            self.text_embed(text_embed),                                             # [N, W]
            self.time(timestep_embedding(t, config.width)),                          # [N, W]
            self.image_embed(x),                                                     # [N, W]
            self.query.expand(len(x), -1),                                           # [N, W]
        ]
        h = torch.cat([self.text(text), torch.stack(tail, dim=1)], dim=1)            # [N, L+4, W]
        h = h + torch.cat([self.position[:length], self.position[-4:]])              # [N, L+4, W]
        mask = self._mask(text_mask)                                                 # [N,1,L+4,L+4]
        for block in self.blocks:
            h = block(h, mask)                                                       # [N, L+4, W]
        return self.out(self.norm(h[:, -1]))                                         # [N, E]

    def _mask(self, text_mask: Tensor) -> Tensor:
        """Who attends to whom: [N, L] -> [N, 1, L + 4, L + 4]."""
        n, length = text_mask.shape
        keys = torch.cat([text_mask, text_mask.new_ones(n, 4)], dim=1)               # [N, L + 4]
        causal = keys.new_ones(length + 4, length + 4).tril()
        # Padding attends to itself, since a softmax over no key at all is not a number.
        itself = torch.eye(length + 4, dtype=torch.bool, device=keys.device)
        return ((keys[:, None, :] & causal) | itself)[:, None]
