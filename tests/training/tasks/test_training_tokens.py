"""Training a decoder with a text transformer of its own (GLIDE), and the model that it becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from places import TRAIN
from runs import forget
from tiny_glide import tiny_files

from training import decoder
from training.chain import assemble
from training.recipes import Chain
from training.tasks.recipes import TOKENIZER
from training.tasks.tokens import tokenizer_of
from unclip.config import ConfigError
from unclip.nets.text import TextConfig
from unclip.pipeline.pipeline import Pipeline

TEXT = {"vocab_size": 97, "length": 6, "width": 16, "layers": 1, "heads": 2}
NET = {
    "image_size": 8,
    "channels": 8,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "head_channels": 8,
    "attention_resolutions": [4],
    "context_channels": 16,
    "text_dim": 16,
    "text_embed_dim": 16,
    "text_project": False,
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    tiny_files(tmp_path / "vocabulary")
    stage = {
        "net": NET,
        "process": {"predicts": "v"},
        "sampling": {"steps": 2},
        "text": TEXT,
        "drop_text": 0.2,
    }
    path = tmp_path / "glide.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "tokenizer": str(tmp_path / "vocabulary"),
                "data": {"shards": [str(TRAIN)], "size": 8, "hold": True},
                "stage": stage,
                "train": {
                    "out": str(tmp_path / "run"),
                    "pictures": 64,
                    "batch_size": 16,
                    "warmup": 0,
                    "precision": "fp32",
                    "trackers": [],
                },
            }
        )
    )
    return path


def test_a_glide_is_trained_and_put_together(recipe, tmp_path):
    """Its text transformer learns with it, and the pipeline has its tokenizer."""
    forget()
    decoder.main([str(recipe)])
    chain = Chain(
        name="tiny",
        out=str(tmp_path / "model"),
        half=False,
        stages=[{"program": "decoder", "config": str(recipe)}],
    )
    made = Pipeline.load(assemble(chain))
    assert made.tokenizer.length == 6 and made.tokenizer.vocab_size == 97
    assert (tmp_path / "run" / TOKENIZER).is_dir()
    weights = dict(made.decoder.named_parameters())
    assert weights["text.blocks.0.mlp.2.weight"].abs().max() > 0  # these start as zeros
    told = [
        made.decoder.encode(made.decoder.conditions(1, tokens=ids, token_mask=mask))["text"]
        for ids, mask in map(made.tokenizer.tokenize, (["fish"], ["dog"]))
    ]
    assert not torch.allclose(*told, atol=1e-3)
    assert made.generate("fish", progress=None).size == (8, 8)


def test_a_tokenizer_that_is_missing_or_knows_too_much_is_refused(recipe, tmp_path):
    forget()
    with pytest.raises(ConfigError, match="must name a tokenizer"):
        decoder.main([str(recipe), "tokenizer=null"])
    assert not (tmp_path / "run" / TOKENIZER).exists()
    with pytest.raises(ConfigError, match="vocab_size is 50, but .* has 97 tokens"):
        tokenizer_of(str(tmp_path / "vocabulary"), TextConfig(**{**TEXT, "vocab_size": 50}))
    assert tokenizer_of(str(tmp_path / "vocabulary"), TextConfig(**TEXT)).length == 6
