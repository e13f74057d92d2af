"""ECLIPSE's priors: their loss, their one step, and the layout that they were published in."""

from __future__ import annotations

import json
from math import log

import karlo_models as small
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import randn, seeded, unit

import unclip
from unclip import convert
from unclip.checkpoint import CheckpointError
from unclip.config import ConfigError, parse_config
from unclip.convert.kandinsky.eclipse import load_eclipse, stage_config
from unclip.diffusion.noise import Noise
from unclip.stages import Prior, PriorStageConfig, load_stage

NET = {"embed_dim": 6, "text_dim": 5, "text_length": 7, "width": 16, "layers": 1, "heads": 2, "timed": False}
ONE_STEP = {"objective": "eclipse", "drop_text": 0, "sampling": {"steps": 1, "guidance_scale": 1}}


def texts(n: int = 3, length: int = small.LENGTH, dim: int = small.DIM) -> dict:
    mask = torch.arange(length) < torch.tensor([2, length // 2, length])[:n, None]
    return {
        "text_embed": randn(n, dim, seed=1), "text": randn(n, length, dim, seed=2) * mask[..., None],
        "text_mask": mask,
    }  # fmt: skip


@torch.no_grad()
def computed(theirs, x: torch.Tensor, text_embed, text, text_mask) -> torch.Tensor:
    """ECLIPSE's sequence through the layers of diffusers' prior, which has one for the time besides."""
    tail = [theirs.embedding_proj(text_embed), theirs.proj_in(x)]
    query = theirs.prd_embedding.expand(len(x), -1, -1)
    h = torch.cat([theirs.encoder_hidden_states_proj(text), torch.stack(tail, 1), query], dim=1)
    h = h + theirs.positional_embedding
    size = h.shape[1]
    keys = F.pad(text_mask, (0, size - text_mask.shape[1]), value=True)
    bias = torch.zeros(len(x), size, size).masked_fill(~keys[:, None], -10000.0)
    bias = bias + torch.full((size, size), -10000.0).triu(1)
    bias = bias.repeat_interleave(theirs.config.num_attention_heads, dim=0)
    for block in theirs.transformer_blocks:
        h = block(h, attention_mask=bias)
    return theirs.proj_to_clip_embeddings(theirs.norm_out(h)[:, -1])


@pytest.fixture
def published(tmp_path) -> tuple:
    theirs = small.prior(additional_embeddings=3)
    weights = {name: value for name, value in theirs.state_dict().items() if "time_embedding" not in name}
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    values = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return theirs, tmp_path


@pytest.mark.usefixtures("float32")
def test_a_published_prior_makes_an_embedding_at_once(published):
    theirs, folder = published
    ours = load_eclipse(folder)
    told, noise = texts(), Noise(range(3))
    x = Noise(range(3))((small.DIM,))
    small.close(ours.sample(ours.conditions(**told), noise), computed(theirs, x, **told))


def test_what_is_no_such_prior_is_refused(published):
    theirs, folder = published
    with pytest.raises(CheckpointError, match="not of ECLIPSE's kind: it has additional_embeddings 4"):
        stage_config({**theirs.config, "additional_embeddings": 4})
    save_file(dict(theirs.state_dict()), folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="unexpected: .*time"):
        load_eclipse(folder)


def test_the_released_one_has_34_million_weights():
    values = {"num_attention_heads": 16, "attention_head_dim": 32, "num_layers": 10, "embedding_dim": 1280,
              "additional_embeddings": 3}  # fmt: skip
    stage = Prior.blank(stage_config(values))
    assert round(sum(value.numel() for value in stage.parameters()) / 1e6) == 34


@pytest.fixture
def stage() -> Prior:
    torch.manual_seed(0)
    return Prior(parse_config(PriorStageConfig, {"net": NET, **ONE_STEP}, "it"))


def told(stage: Prior, n: int) -> dict:
    text = randn(n, 7, 5, seed=8)
    return stage.conditions(unit(n, seed=3), text, torch.ones(n, 7, dtype=torch.bool))


def test_its_loss_is_the_squared_error_and_the_contrast(stage):
    n = 5
    x0, t, conditions = randn(n, 6, seed=1), torch.zeros(n, dtype=torch.int64), told(stage, n)
    torch.nn.init.zeros_(stage.network.out.weight)
    torch.nn.init.zeros_(stage.network.out.bias)
    terms = stage(x0, t, randn(n, 6), conditions)  # it makes zeros, which are as like one text as another
    assert torch.allclose(terms["mse"], x0.square().mean(1))
    assert torch.allclose(terms["contrast"], torch.full((n,), log(n)))
    assert torch.allclose(terms["loss"], terms["mse"] + 0.2 * log(n))
    torch.nn.init.normal_(stage.network.out.weight, generator=seeded(4))
    terms = stage(x0, t, randn(n, 6, seed=2), conditions)
    made = stage.denoiser(randn(n, 6, seed=2), t + 1000, **conditions).x0
    logits = F.normalize(made, dim=1) @ conditions["text_embed"].T / 0.07
    wanted = -(logits.log_softmax(0).diagonal() + logits.log_softmax(1).diagonal()) / 2
    assert torch.allclose(terms["contrast"], wanted, atol=1e-5)


def test_it_learns_and_is_kept(stage, tmp_path):
    n = 16
    conditions, x0 = told(stage, n), randn(n, 6, seed=5)
    optimiser = torch.optim.AdamW(stage.parameters(), 3e-3)
    losses = []
    for step in range(60):
        loss = stage(x0, torch.zeros(n, dtype=torch.int64), randn(n, 6, seed=step), conditions)["loss"].mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]
    stage.eval().save(tmp_path / "prior.safetensors")
    again = load_stage(tmp_path / "prior.safetensors")
    first, second = (one.sample(told(one, n), Noise(range(n))) for one in (stage, again))
    assert torch.equal(first, second) and again.config.objective == "eclipse"


@pytest.mark.parametrize("changes, said", [
    ({"drop_text": 0.1}, "drop_text 0"), ({"sampling": {"steps": 2}}, "sampling.steps 1"),
    ({"net": {**NET, "timed": True}}, "net.timed false"),
    ({"objective": "diffusion"}, "for objective eclipse"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        parse_config(PriorStageConfig, {"net": NET, **ONE_STEP, **changes}, "it")


def test_a_model_takes_another_prior(published, tmp_path):
    from kandinsky_models import pipelines

    _, folder = published
    pipelines(tmp_path / "models")
    pipeline = unclip.load(tmp_path / "models" / "kandinsky", device="cpu")
    before = pipeline.generate("a red cat", prior_steps=2, steps=2)
    prior = convert.load_prior(folder, pipeline, torch.float32)
    after = pipeline.with_prior(prior).generate("a red cat", steps=2)
    assert after.size == before.size and after.tobytes() != before.tobytes()
    again = unclip.load(pipeline.save(tmp_path / "ours"), device="cpu")
    assert again.generate("a red cat", steps=2).tobytes() == after.tobytes()
    with pytest.raises(ValueError, match="predicts an embedding at once, and takes no prior_steps"):
        again.generate("a red cat", prior_steps=2)
    with pytest.raises(CheckpointError, match="for Kandinsky 2.2 and Karlo, not for kandinsky"):  # of 16
        convert.load_prior("eclipse", pipeline, torch.float32)
    prior.save(tmp_path / "prior.safetensors")
    ours = convert.load_prior(tmp_path / "prior.safetensors", pipeline, torch.float32)
    assert torch.equal(ours.network.out.weight, prior.network.out.weight)
    with pytest.raises(CheckpointError, match="its embed_dim is 16, not 128"):
        unclip.load("icons", device="cpu").with_prior(prior)
