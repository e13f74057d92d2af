"""ECLIPSE's priors (Patel et al. 2024), of Kandinsky 2.2 and of Karlo: one step, and no time."""

from __future__ import annotations

from pathlib import Path

from ...config import parse_config
from ...nets import PriorConfig
from ...stages import Prior, PriorStageConfig, Process, Sampling
from ..diffusers_layout import Values, check, read_settings, read_weights
from ..karlo import names
from ..karlo.configs import ONLY
from ..karlo.pipeline import filled, unwhitened

STATISTICS = ("embed_mean", "embed_std")  # which it does not use


def stage_config(values: Values, source: str = "ECLIPSE") -> PriorStageConfig:
    """Of its own PriorTransformer, which is diffusers' without the time."""
    only = {**ONLY["prior"], "additional_embeddings": (3,)}
    check(values, only, {"additional_embeddings": 3}, source, "ECLIPSE's")
    dim, heads = values.get("embedding_dim", 768), values.get("num_attention_heads", 32)
    net = {
        "embed_dim": dim,
        "text_dim": dim,
        "text_length": values.get("num_embeddings", 77),
        "width": heads * values.get("attention_head_dim", 64),
        "heads": heads,
        "layers": values.get("num_layers", 20),
        "dropout": values.get("dropout", 0.0),
        "null_text": False,
        "timed": False,
    }
    return PriorStageConfig(
        net=parse_config(PriorConfig, net, source),
        process=Process(predicts="x0"),
        sampling=Sampling(sampler="ddim", steps=1, guidance_scale=1.0, threshold="none"),
        drop_text=0.0,
        unit_norm=False,
        objective="eclipse",
    )


def load_eclipse(folder: str | Path) -> Prior:
    """The prior of a folder with its config.json and weights, on the CPU.

    Raises CheckpointError for what is missing, damaged or of another kind.
    """
    folder = Path(folder)
    config = stage_config(read_settings(folder / "config.json"), str(folder))
    weights = read_weights(folder)
    ours, unused = names.prior(weights, config.net.layers, config.net.heads, str(folder))
    ours = {name: value for name, value in ours.items() if name not in STATISTICS}
    return filled(Prior, config, [(ours, unused), unwhitened(config.net.embed_dim)], folder)
