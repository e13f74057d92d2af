"""The autoregressive prior: CLIP image embeddings from text, component by component."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import CheckpointError
from ..diffusion.noise import Noise, Random
from ..diffusion.schedule import make_schedule
from ..nets.prior_ar import ARPriorTransformer
from .config import ARPriorStageConfig, ARSampling
from .prior import TextPrior
from .stage import Conditions

TRUE_EMBED = "true_embed"  # in training: the text's embedding before it is blurred


class ARPrior(TextPrior):
    """By a causal transformer over quantised principal components (Ramesh et al. 2022, section 2.2).

    basis:      [K,D], principal directions, by decreasing variance.
    low, width: [K], where a component's first bucket begins, and how wide its buckets are.
    similarity: [S-1], where the product of text and image passes from one bucket to the next; all buckets
                hold equally many pairs, so that the upper half of them is that of the distribution.
    """

    config_class = ARPriorStageConfig
    config: ARPriorStageConfig
    network: ARPriorTransformer
    basis: Tensor
    low: Tensor
    width: Tensor
    similarity: Tensor

    def __init__(self, config: ARPriorStageConfig) -> None:
        net = config.net
        super().__init__(config, ARPriorTransformer(net), net.embed_dim)
        self.register_buffer("basis", torch.eye(net.embed_dim)[: net.components].clone())
        self.register_buffer("low", torch.full((net.components,), -1.0))
        self.register_buffer("width", torch.full((net.components,), 2.0 / net.buckets))
        self.register_buffer("similarity", torch.linspace(-1, 1, net.similarities + 1)[1:-1].clone())
        self.schedule = make_schedule("cosine", 1)  # nothing is noised: all of training is at one level

    def set_codes(self, text_embed: Tensor, image_embed: Tensor) -> None:
        """Measure, on pairs of texts and their pictures [M,D], directions, buckets and similarities.

        After ``set_statistics``, whose mean is the middle. ``ValueError`` for fewer than two pairs.
        """
        if len(image_embed) < 2 or image_embed.shape != text_embed.shape:
            raise ValueError(
                f"components are measured on two pairs at least, each of a text and a picture, not on "
                f"{tuple(text_embed.shape)} texts and {tuple(image_embed.shape)} pictures"
            )
        net = self.config.net
        centred = image_embed.double().cpu() - self.embed_mean.double().cpu()
        _, directions = torch.linalg.eigh(centred.T @ centred)  # by increasing eigenvalue
        basis = directions.flip(1)[:, : net.components].T
        low, high = (centred @ basis.T).aminmax(dim=0)
        self.basis.copy_(basis)
        self.low.copy_(low)
        self.width.copy_(((high - low) / net.buckets).clamp_min(1e-6))
        quantiles = torch.linspace(0, 1, net.similarities + 1, dtype=torch.float64)[1:-1]
        self.similarity.copy_(_product(text_embed, image_embed).double().cpu().quantile(quantiles))

    def encode(self, embed: Tensor) -> Tensor:
        """Image embeddings [N,D] -> buckets of their components, int64 [N,K]; beyond the ends the last."""
        components = (embed.float() - self.embed_mean) @ self.basis.T  # [N, K]
        codes = ((components - self.low) / self.width).floor().long()
        return codes.clamp(0, self.config.net.buckets - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """The embedding [N,D] in the middle of buckets [N,K]: within half a width of each component."""
        return (self.low + (codes + 0.5) * self.width) @ self.basis + self.embed_mean

    def drop(self, conditions: Conditions, generator: Random = None) -> Conditions:
        left = super().drop(conditions, generator)
        return {**left, TRUE_EMBED: conditions["text_embed"]}

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        """Cross entropy [N] of whitened embeddings x0 [N,D], in nats a component; t and noise do nothing."""
        told = dict(conditions)
        embed = self.coloured(x0)
        text_embed = told.pop(TRUE_EMBED, told["text_embed"])
        similarity = torch.bucketize(_product(text_embed, embed), self.similarity, right=True)
        codes = self.encode(embed)
        logits = self.network(codes, similarity, **told)  # [N, K, B]
        entropy = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").mean(1)
        return {"loss": entropy, "cross_entropy": entropy}

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        noise: Noise,
        sampling: ARSampling | None = None,
        null: Conditions | None = None,
    ) -> Tensor:
        """Image embeddings [N,D], of length 1 unless ``config.unit_norm`` is false.

        null: what guidance starts from; None = the learned "no text".
        """
        embed = self.decode(self.sample_codes(conditions, noise, sampling, null))
        return F.normalize(embed, dim=-1) if self.config.unit_norm else embed

    @torch.no_grad()
    def sample_codes(
        self,
        conditions: Conditions,
        noise: Noise,
        sampling: ARSampling | None = None,
        null: Conditions | None = None,
    ) -> Tensor:
        """Buckets int64 [N,K], each drawn given those before it; arguments as in ``sample``."""
        sampling = sampling or self.config.sampling
        half, scale = self.config.net.similarities // 2, sampling.guidance_scale
        similarity = half + (noise.uniform() * half).long()
        if scale != 1:
            null = self.null(conditions) if null is None else null
            conditions = {key: torch.cat([null[key], value]) for key, value in conditions.items()}
            similarity = similarity.repeat(2)
        logits, sequence = self.network.begin(similarity, **conditions)
        codes: list[Tensor] = []
        while True:
            codes.append(pick(guided(logits, scale), noise.uniform(), sampling.temperature, sampling.top_p))
            if len(codes) == self.config.net.components:
                return torch.stack(codes, dim=1)
            logits = self.network.follow(codes[-1] if scale == 1 else codes[-1].repeat(2), sequence)

    def check(self, source: str) -> None:
        super().check(source)
        if (self.width <= 0).any():
            raise CheckpointError(f"{source} holds a width of buckets that is not above 0")


def guided(logits: Tensor, scale: float) -> Tensor:
    """null + scale (text - null) of logits [2N,B], null first (Ho & Salimans 2021); [N,B] for scale 1."""
    if scale == 1:
        return logits
    null, text = logits.chunk(2)
    return null + scale * (text - null)


def pick(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """One code a row of logits [N,B], int64 [N], by the inverse of the distribution at uniform [N] in [0,1).

    top_p: only the likeliest codes whose probabilities reach it (Holtzman et al. 2020, section 3.1).
    """
    p = (logits.double() / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = p.sort(descending=True, dim=-1)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        p = torch.zeros_like(p).scatter(-1, order, ordered)
    cumulated = p.cumsum(-1)
    place = uniform.double()[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, place, right=True)[:, 0].clamp_max(p.shape[-1] - 1)


def _product(text_embed: Tensor, image_embed: Tensor) -> Tensor:
    """The cosine of texts and pictures, [N,D] each -> [N]"""
    return (F.normalize(text_embed, dim=-1) * F.normalize(image_embed, dim=-1)).sum(-1)
