"""Priors are compared by how near they come to pictures' own embeddings."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from places import HELDOUT
from tiny import randn
from tiny_models import WIDTH

from inference.measure.priors import compare, scores
from unclip import load


def test_scores_of_what_is_known():
    true = F.normalize(randn(5, 8), dim=1)
    cosine, first = scores(3 * true, true)
    assert abs(cosine - 1) < 1e-6 and first == 1
    assert scores(true.roll(1, 0), true)[1] == 0
    mixed = torch.cat([true[:2], true[3:], true[2:3]])
    assert abs(scores(mixed, true)[1] - 2 / 5) < 1e-6
    assert scores(true[:1].expand(2, -1), true[:1].expand(2, -1))[1] == 1  # a picture that is there twice


def test_a_prior_beside_itself_is_as_near(tiny_model):
    """The model's own, and its checkpoint: the numbers of the pictures' embeddings and its own."""
    rows = compare(str(tiny_model), str(HELDOUT), [tiny_model / "prior.safetensors"], limit=6, timed=1)
    own, other = (re.split(r"\s*\|\s*", line)[2:4] for line in rows.splitlines()[2:4])
    assert own == other and rows.endswith("6 held-out pictures, seed 0.")
    pipeline = load(str(tiny_model), "cpu")
    assert pipeline.prior.config.net.embed_dim == WIDTH and -1 <= float(own[0]) <= 1
