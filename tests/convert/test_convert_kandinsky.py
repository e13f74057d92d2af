"""Kandinsky 2.2 computes what diffusers does: its parts, and the whole pipeline."""

from __future__ import annotations

import kandinsky_models as small
import pytest
import torch
from karlo_models import close
from tiny import randn

from unclip.checkpoint import CheckpointError, load_strictly
from unclip.convert.kandinsky import configs, names
from unclip.nets.autoencoder import Autoencoder

pytestmark = pytest.mark.usefixtures("float32")


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, small.DEEP_MOVQ, {"norm_type": "group", "num_vq_embeddings": 3}])
def test_an_autoencoder(changes):
    theirs = small.movq(**changes)
    config = configs.autoencoder_net(dict(theirs.config))
    tensors, unused = names.autoencoder(theirs.state_dict(), config, "it")
    ours = Autoencoder(config)
    load_strictly(ours, {name.removeprefix("autoencoder."): v for name, v in tensors.items()}, "it", unused)
    picture, latent = randn(2, 3, 16, 24).clamp(-1, 1), randn(2, config.latent_channels, 5, 3, seed=1)
    close(ours.encode(picture), theirs.encode(picture).latents)
    close(ours.decode(latent), theirs.decode(latent, force_not_quantize=True).sample)


def test_an_autoencoder_of_another_kind_is_refused():
    with pytest.raises(CheckpointError, match="vq_embed_dim|codes of 2 numbers and latents of 4"):
        configs.autoencoder_net({**small.MOVQ, "vq_embed_dim": 2})
    with pytest.raises(CheckpointError, match="not of Kandinsky's kind: it has act_fn 'relu'"):
        configs.autoencoder_net({**small.MOVQ, "act_fn": "relu"})
    with pytest.raises(CheckpointError, match="and on the way up likewise"):
        configs.autoencoder_net({**small.MOVQ, "up_block_types": ["UpDecoderBlock2D"] * 2})
