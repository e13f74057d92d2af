"""Karlo computes what diffusers and its own code do: parts, the whole pipeline, and every released shape."""

from __future__ import annotations

import json
from pathlib import Path

import karlo_models as small
import numpy as np
import pytest
import torch
from karlo_models import close, exact
from places import fixtures
from tiny import randn
from torch import Tensor

import unclip
from unclip.checkpoint import load_strictly
from unclip.convert.karlo import configs as karlo_configs
from unclip.convert.karlo import names
from unclip.convert.karlo import pipeline as karlo
from unclip.diffusion.noise import Noise
from unclip.diffusion.schedule import make_schedule
from unclip.nets import PriorConfig, PriorTransformer, UNet
from unclip.pipeline.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("float32")
PROMPTS = ["a red cat", "fish", "dog and cat and dog and red fish, cat, dog, fish"]  # the last is cut


def texts(length: int, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, tokens, and a mask of texts of different lengths, one of them full."""
    mask = torch.arange(length) < torch.tensor([2, length // 2, length])[:n, None]
    return randn(n, small.DIM, seed=1), randn(n, length, small.DIM, seed=2) * mask[..., None], mask


def config_of(model) -> dict:
    return dict(model.config)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"num_attention_heads": 4, "attention_head_dim": 6, "num_layers": 3, "num_embeddings": 7}]
)
def test_a_prior(changes):
    theirs = small.prior(**changes)
    config = karlo_configs.prior_net(config_of(theirs))
    tensors, unused = names.prior(theirs.state_dict(), config.layers, config.heads, "it")
    stage = {name: tensors.pop(name) for name in ("embed_mean", "embed_std")}
    assert torch.equal(stage["embed_std"][None], theirs.clip_std)
    ours = PriorTransformer(config)
    ours_alone = {name.removeprefix("network."): value for name, value in tensors.items()}
    load_strictly(ours, ours_alone, "it", unused)
    embed, tokens, mask = texts(config.text_length)
    x, t = randn(3, small.DIM, seed=3), torch.tensor([0, 321, 999])
    wanted = theirs(x, t, embed, tokens, mask).predicted_image_embedding
    close(ours(x, t.float(), embed, tokens, mask), wanted)


DEEP = {
    "layers_per_block": 2, "block_out_channels": (32, 96, 64), "attention_head_dim": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", *2 * ["SimpleCrossAttnDownBlock2D"]),
    "up_block_types": (*2 * ["SimpleCrossAttnUpBlock2D"], "ResnetUpsampleBlock2D"),
}  # fmt: skip
HOLED = {
    "block_out_channels": (64, 64, 32), "attention_head_dim": 32, "resnet_time_scale_shift": "default",
    "down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D",
                         "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("changes, tokens", [({}, 4), (DEEP, 3), (HOLED, 1)])
def test_a_decoder(changes, tokens):
    theirs = small.decoder(**changes)
    channels = theirs.config.block_out_channels[0]
    proj = small.text_proj(time_embed_dim=4 * channels, clip_extra_context_tokens=tokens)
    config = karlo_configs.decoder_net(config_of(theirs), config_of(proj))
    parts = [names.unet(theirs.state_dict(), config, "it"), names.text_proj(proj.state_dict(), "it")]
    ours = filled(config, parts)
    embed, hidden, mask = texts(small.LENGTH)
    x, t, image = randn(3, 3, 16, 16), torch.tensor([0, 500, 999]), randn(3, small.DIM, seed=5)

    def wanted(image: Tensor) -> Tensor:
        context, more = proj(
            image_embeddings=image,
            prompt_embeds=embed,
            text_encoder_hidden_states=hidden,
            do_classifier_free_guidance=False,
        )
        keys = torch.nn.functional.pad(mask, (tokens, 0), value=True)
        return theirs(x, t, context, class_labels=more, attention_mask=keys).sample

    def made(image: Tensor | None) -> Tensor:
        return ours(x, t.float(), image_embed=image, text=hidden, text_mask=mask, text_embed=embed)

    close(made(image), wanted(image))
    close(made(None), wanted(proj.learned_classifier_free_guidance_embeddings.expand(3, -1)))


def filled(config, parts: list[names.Renamed], network: str = "network") -> UNet:
    net = UNet(config)
    load_strictly(
        net,
        {name.removeprefix(f"{network}."): value for ours, _ in parts for name, value in ours.items()},
        "it",
        [name for _, unused in parts for name in unused],
    )
    return net


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"add_attention": True, "attention_head_dim": 16},
        {
            "layers_per_block": 2,
            "block_out_channels": (64, 32, 96),
            "resnet_time_scale_shift": "scale_shift",
            "down_block_types": ("ResnetDownsampleBlock2D",) * 3,
            "up_block_types": ("ResnetUpsampleBlock2D",) * 3,
        },
    ],
)
def test_an_upsampler(changes):
    theirs = small.super_res(**changes)
    config = karlo_configs.upsampler_net(config_of(theirs))
    ours = filled(config, [names.unet(theirs.state_dict(), config, "it", "last")], "last")
    x, t = randn(2, 6, 32, 32), torch.tensor([0, 832])
    close(ours(x, t.float()), theirs(x, t).sample)


# The released model's shapes.


def manifest(path: Path) -> tuple[dict, dict[str, Tensor], int]:
    """Configuration, tensors without numbers in them, and their count."""
    described = json.loads(path.read_text())
    tensors = {name: torch.empty(shape, device="meta") for name, shape in described["tensors"].items()}
    assert sum(value.numel() for value in tensors.values()) == described["parameters"]
    return described["config"], tensors, described["parameters"]


def covered(config, parts: list[names.Renamed], network: str = "network") -> int:
    """Fill a network without numbers, strictly; returns its parameters."""
    with torch.device("meta"):
        net = (PriorTransformer if isinstance(config, PriorConfig) else UNet)(config)
    tensors = {
        name.removeprefix(f"{network}."): value
        for ours, _ in parts
        for name, value in ours.items()
        if not name.startswith("embed_")
    }
    load_strictly(net, tensors, "it", [name for _, unused in parts for name in unused])
    return sum(value.numel() for value in net.parameters())


MANIFESTS = [path for path in fixtures("manifests/karlo-*.json") if "text_proj" not in path.name]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_released_tensor_has_its_place(path):
    settings, tensors, count = manifest(path)
    part = path.stem.rpartition("-")[2]
    if part == "prior":
        config = karlo_configs.prior_net(settings)
        ours = names.prior(tensors, config.layers, config.heads, part)
        assert {"embed_mean", "embed_std"} < set(ours[0])
        assert covered(config, [ours]) + 2 * config.embed_dim == count
    elif part == "decoder":
        other, beside, more = manifest(path.with_name(path.name.replace("decoder", "text_proj")))
        config = karlo_configs.decoder_net(settings, other)
        parts = [names.unet(tensors, config, part), names.text_proj(beside, "text_proj")]
        assert covered(config, parts) == count + more
    else:
        config = karlo_configs.upsampler_net(settings)
        assert covered(config, [names.unet(tensors, config, part)]) == count


def test_the_manifests_are_there():
    assert len(MANIFESTS) >= 4


def test_the_plan_is_of_what_was_released():
    plan = karlo.configs()
    paths = fixtures("manifests/karlo-diffusers-*.json")
    parts = {path.stem.rpartition("-")[2]: manifest(path) for path in paths}
    assert plan["prior"].net == karlo_configs.prior_net(parts["prior"][0])
    assert plan["decoder"].net == karlo_configs.decoder_net(parts["decoder"][0], parts["text_proj"][0])
    assert plan["upsamplers"][0].net == karlo_configs.upsampler_net(parts["super_res_first"][0])
    steps = [config.sampling.steps for config in (plan["prior"], plan["decoder"], *plan["upsamplers"])]
    assert steps == [25, 25, 7]


# The whole pipeline.


class Stream:
    """One stream of noise for both codes, in the order in which they ask."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(7)

    def __call__(self, shape) -> Tensor:
        return torch.randn(tuple(shape), generator=self.random)


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """One whose pictures depend much on all that goes in; its schedulers are given exact tables.

    With their own every embedding is 1.0006 times as long, and at the last level, where x0 is clamped, a
    random network makes much of that in some pixel.
    """
    pipeline, folder = small.saved(tmp_path_factory.mktemp("lively"), gain=0.7)
    for scheduler in (pipeline.prior_scheduler, pipeline.decoder_scheduler, pipeline.super_res_scheduler):
        exact(scheduler, make_schedule("cosine", 1000))
    return pipeline, folder


@pytest.fixture(scope="module")
def gentle(tmp_path_factory):
    """One whose pictures depend less on what goes in; diffusers' own schedulers as they are."""
    return small.saved(tmp_path_factory.mktemp("gentle"), gain=0.15)


def drawn_by_diffusers(pipeline, monkeypatch, prompts: list[str], **options) -> np.ndarray:
    """[N, S, S, 3] in 0..255, not rounded."""
    stream = Stream()
    for module in ("pipelines.deprecated.unclip.pipeline_unclip", "schedulers.scheduling_unclip"):
        monkeypatch.setattr(f"diffusers.{module}.randn_tensor", lambda shape, **_: stream(shape))
    return 255 * pipeline(prompts, output_type="np", **options).images


def drawn_by_us(pipeline: Pipeline, monkeypatch, prompts: list[str], **options) -> np.ndarray:
    stream = Stream()
    monkeypatch.setattr(Noise, "__call__", lambda self, shape: stream((len(self), *shape)))
    pictures = pipeline.generate(prompts, **options)
    return np.stack([np.asarray(picture, np.float32) for picture in pictures])


FEW = ({"prior_num_inference_steps": 4, "decoder_num_inference_steps": 6, "super_res_num_inference_steps": 4,
        "prior_guidance_scale": 1.5, "decoder_guidance_scale": 2.0},
       {"prior_steps": 4, "steps": 6, "upsampler_steps": 4, "prior_guidance_scale": 1.5,
        "guidance_scale": 2.0})  # fmt: skip


@pytest.mark.bitwise
@pytest.mark.parametrize(
    "kind, prompts, options",
    [("lively", PROMPTS[1:], ({}, {})), ("lively", PROMPTS, FEW), ("gentle", PROMPTS, ({}, {}))],
)
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_the_whole_pipeline(kind, prompts, options, request, monkeypatch):
    theirs, folder = request.getfixturevalue(kind)
    ours = unclip.load(folder, device="cpu")
    wanted = drawn_by_diffusers(theirs, monkeypatch, prompts, **options[0])
    made = drawn_by_us(ours, monkeypatch, prompts, **options[1])
    assert made.shape == wanted.shape == (len(prompts), 32, 32, 3)
    assert ((wanted > 1) & (wanted < 254)).mean() > 0.3  # pixels that no clamp has made alike
    assert np.abs(made - wanted).max() <= 1


def test_what_the_pipeline_holds(gentle):
    theirs, folder = gentle
    ours = karlo.from_diffusers(folder)
    assert (ours.name, ours.size, ours.prior.config.clamp) == ("karlo", 32, 5.0)
    assert torch.equal(ours.prior.embed_std, theirs.prior.clip_std[0])
    assert torch.equal(ours.decoder.embed_std, torch.ones(small.DIM))
    ids = theirs.tokenizer(PROMPTS[:2], padding="max_length", return_tensors="pt")
    wanted = theirs.text_encoder(ids.input_ids)
    text = ours.clip.encode_text(PROMPTS[:2])
    close(text.raw, wanted.text_embeds)
    close(text.tokens, wanted.last_hidden_state * ids.attention_mask[..., None])
    assert torch.equal(text.mask, ids.attention_mask.bool())
    with pytest.raises(ValueError, match="no CLIP that knows pictures"):
        ours.generate("a cat", clip_guidance_scale=1.0, prior_steps=2, steps=2)


@pytest.mark.bitwise
def test_saved_as_ours_it_is_the_same(gentle, tmp_path):
    first = karlo.from_diffusers(gentle[1]).place("cpu")  # as unclip.load lays weights out
    second = unclip.load(first.save(tmp_path / "a"), device="cpu")
    second.save(tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 7
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    few = {"prior_steps": 3, "steps": 3, "upsampler_steps": 2}
    assert first.generate("a red cat", **few).tobytes() == second.generate("a red cat", **few).tobytes()
