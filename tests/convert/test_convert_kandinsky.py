"""Kandinsky 2.2 computes what diffusers does: its parts, and the whole pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import kandinsky_models as small
import numpy as np
import pytest
import torch
from karlo_models import close, exact
from PIL import Image
from tiny import randn

import unclip
from unclip import convert
from unclip.app import command
from unclip.checkpoint import CheckpointError, load_strictly
from unclip.convert.kandinsky import configs, names
from unclip.convert.karlo import names as karlo
from unclip.diffusion.noise import Noise
from unclip.diffusion.schedule import make_schedule
from unclip.nets import UNet
from unclip.nets.autoencoder import Autoencoder
from unclip.pipeline.canvas import canvas_of
from unclip.pipeline.request import wish_of
from unclip.plan import plan
from unclip.stages import Decoder, Prior

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


DEEP = {
    "layers_per_block": 2, "block_out_channels": (32, 96, 64), "attention_head_dim": 8, "in_channels": 9,
    "down_block_types": ("ResnetDownsampleBlock2D", *2 * ["SimpleCrossAttnDownBlock2D"]),
    "up_block_types": (*2 * ["SimpleCrossAttnUpBlock2D"], "ResnetUpsampleBlock2D"),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, DEEP, {"encoder_hid_dim": 5, "cross_attention_dim": 8}])
def test_a_decoder(changes):
    theirs = small.unet(**changes)
    dim, channels = theirs.config.encoder_hid_dim, theirs.config.in_channels
    config = configs.decoder_net(dict(theirs.config), 4)
    tensors, unused = names.decoder(theirs.state_dict(), config, "it")
    tensors["network.null_image"] = null = randn(dim, seed=9)
    ours = UNet(config)
    load_strictly(ours, {name.removeprefix("network."): v for name, v in tensors.items()}, "it", unused)
    x, t, image = randn(3, channels, 8, 8), torch.tensor([0, 500, 999]), randn(3, dim, seed=5)

    def wanted(image):
        return theirs(x, t, None, added_cond_kwargs={"image_embeds": image}).sample[:, :4]

    close(ours(x, t.float(), image_embed=image), wanted(image))
    close(ours(x, t.float()), wanted(null.expand(3, -1)))


@pytest.fixture(scope="module")
def kandinsky(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kandinsky")
    return *small.pipelines(folder), folder / "kandinsky"


def drawn_by_diffusers(first, second, monkeypatch, prompts: list[str], steps: int, side: int) -> np.ndarray:
    """[N, S, S, 3] in 0..1."""
    stream = torch.Generator().manual_seed(7)
    for module in (
        "pipelines.kandinsky2_2.pipeline_kandinsky2_2_prior", "pipelines.kandinsky2_2.pipeline_kandinsky2_2",
        "schedulers.scheduling_unclip", "schedulers.scheduling_ddpm",
    ):  # fmt: skip
        monkeypatch.setattr(
            f"diffusers.{module}.randn_tensor", lambda shape, **_: torch.randn(tuple(shape), generator=stream)
        )
    embeds = first(prompts, num_inference_steps=5)
    return second(
        *embeds.to_tuple(), height=side, width=side, num_inference_steps=steps, output_type="np"
    ).images


@pytest.mark.parametrize("steps, size", [(7, 16), (100, 16), (7, 32)])
def test_the_whole_pipeline(kandinsky, monkeypatch, steps, size):
    first, second, folder = kandinsky
    prompts, stream = ["a red cat", "fish"], torch.Generator().manual_seed(7)
    monkeypatch.setattr(second, "movq_scale_factor", 8)  # as the released one's: 64 pixels make 8 latents
    for scheduler, name in ((first.scheduler, "cosine"), (second.scheduler, "linear-latent")):
        exact(scheduler, make_schedule(name, 1000))
    wanted = drawn_by_diffusers(first, second, monkeypatch, prompts, steps, 4 * size)
    ours = unclip.load(folder, device="cpu")
    assert (ours.name, ours.size) == ("kandinsky", 16)
    assert ours.at_size(size).size == size
    asked = {} if steps == 100 else {"steps": f"leading{steps}+1"}
    monkeypatch.setattr(
        Noise, "__call__", lambda self, shape: torch.randn((len(self), *shape), generator=stream)
    )
    made = ours.decode(ours.understood(wish_of(ours, prompts, prior_steps=5, **asked)))
    assert ((wanted > 0) & (wanted < 1)).mean() > 0.5  # pixels that no clamp has made alike
    close((made + 1) / 2, torch.tensor(wanted).permute(0, 3, 1, 2))


def test_every_verb_of_a_model_of_latents(kandinsky, tmp_path):
    _, _, folder = kandinsky
    ours = unclip.load(unclip.load(folder, device="cpu").save(tmp_path / "a"), device="cpu")
    few = {"prior_steps": 2, "steps": 2}
    picture = ours.generate("a red cat", **few)
    again = unclip.load(folder, device="cpu").generate("a red cat", **few)
    assert picture.size == (16, 16) and picture.tobytes() == again.tobytes()
    assert len(ours.vary(picture, 2, spread=0.5, steps=2)) == 2
    assert len(ours.interpolate(picture, "fish", 3, **few)) == 3
    assert ours.edit(picture, "a cat", "a dog", **few).size == (16, 16)
    assert ours.generate("fish", image_prompt=picture, negative_prompt="dog", **few).size == (16, 16)
    assert ours.redraw(picture, "a dog", 0.5, **few).tobytes() != picture.tobytes()
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    painted = ours.generate("a dog", image=picture, mask=mask, resamplings=2, **few)
    kept = np.asarray(painted)[:, 8:] == np.asarray(picture)[:, 8:]
    assert kept.all() and painted.tobytes() != picture.tobytes()
    frames = []
    ours.generate("fish", watch=frames.append, **few)
    assert [tuple(frame.x0.shape) for frame in frames] == 2 * [(1, 3, 16, 16)]
    assert ours.place("cpu", "bfloat16", offload=True).generate("fish", **few).size == (16, 16)


@torch.no_grad()
def test_a_decoder_that_was_trained_for_holes(tmp_path):
    from diffusers.pipelines.kandinsky2_2 import pipeline_kandinsky2_2_inpainting as theirs

    _, second = small.pipelines(tmp_path, inpaint=True)
    ours = unclip.load(tmp_path / "kandinsky", device="cpu")
    picture = Image.effect_noise((16, 16), 90).convert("RGB")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    painted = ours.generate("a dog", image=picture, mask=mask, prior_steps=2, steps=2)
    assert (np.asarray(painted)[:, 8:] == np.asarray(picture)[:, 8:]).all()
    keep, image = theirs.prepare_mask_and_masked_image(picture, mask, 16, 16)
    latents = second.movq.encode(image).latents
    keep = theirs.prepare_mask(torch.nn.functional.interpolate(keep, (8, 8), mode="nearest"))
    told = ours.conditions(ours.decoder, 1, canvas=canvas_of(picture, mask))
    close(told["known"], torch.cat([latents * keep, keep], dim=1))


@torch.no_grad()
def test_what_guidance_starts_from(kandinsky):
    first, second, folder = kandinsky
    ours = unclip.load(folder, device="cpu")
    close(ours.decoder.network.null_image, first.get_zero_embed()[0])
    picture = Image.effect_noise((8, 8), 90).convert("RGB")
    pixels = first.image_processor(picture, return_tensors="pt").pixel_values
    close(ours.encode_image(torch.tensor(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1),
          first.image_encoder(pixels).image_embeds)  # fmt: skip


def test_what_is_no_kandinsky_is_refused_in_words(kandinsky, tmp_path):
    copy = Path(shutil.copytree(kandinsky[2], tmp_path / "copy"))
    settings = copy / "decoder" / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text().replace('"beta_end": 0.012', '"beta_end": 0.02'))
    with pytest.raises(CheckpointError, match="scheduler is not of Kandinsky's kind: it has beta_end 0.02"):
        unclip.load(copy, "cpu")
    shutil.rmtree(copy / "decoder" / "movq")
    with pytest.raises(CheckpointError, match="decoder lacks the folders movq"):
        unclip.load(copy, "cpu")
    shutil.rmtree(copy / "prior" / "image_encoder")
    with pytest.raises(CheckpointError, match="prior lacks the folders image_encoder"):
        unclip.load(copy, "cpu")
    shutil.copytree(copy / "decoder", copy / "other-decoder")
    with pytest.raises(CheckpointError, match="several folders of a decoder: decoder, other-decoder"):
        unclip.load(copy, "cpu")


@pytest.mark.parametrize("name", ["kandinsky-2.2", "kandinsky-2.2-inpaint"])
def test_every_tensor_of_the_released_shapes_has_its_place(name):
    from diffusers import PriorTransformer, UNet2DConditionModel, VQModel

    given, stages = {**configs.RELEASED}, convert.configs(convert.MODELS[name])
    given["unet"] = {**given["unet"], **convert.MODELS[name].args.get("unet", {})}
    with torch.device("meta"):
        unet, movq = UNet2DConditionModel(**given["unet"]), VQModel(**given["movq"], num_vq_embeddings=16384)
        prior = PriorTransformer(**given["prior"])
    net, space = stages["decoder"].net, stages["decoder"].autoencoder
    parts = [names.decoder(unet.state_dict(), net, "it"), names.autoencoder(movq.state_dict(), space, "it")]
    assert not [unused for _, others in parts for unused in others]
    ours = {name: value.shape for tensors, _ in parts for name, value in tensors.items()}
    wanted = {name: value.shape for name, value in Decoder.blank(stages["decoder"]).state_dict().items()}
    more = {"network.null_image", "embed_mean", "embed_std"}
    assert ours == {name: shape for name, shape in wanted.items() if name not in more}
    tensors, unused = karlo.prior(
        prior.state_dict(), stages["prior"].net.layers, stages["prior"].net.heads, ""
    )
    wanted = {name: value.shape for name, value in Prior.blank(stages["prior"]).state_dict().items()}
    assert not unused and {name: value.shape for name, value in tensors.items()} == wanted


def test_the_plan_is_of_what_was_released():
    rows = {row.stage: row.parameters for row in plan("kandinsky-2.2").rows}
    assert rows == {"clip": 2_539_567_104, "prior": 1_026_223_360, "decoder": 1_320_811_699}
    assert plan("kandinsky-2.2-inpaint").parameters == sum(rows.values()) + 9 * 384 * (9 - 4)


def test_pictures_of_other_sizes(kandinsky, tmp_path, capsys):
    """By the command, with what it takes of memory, and again by the record; refused where it cannot be."""
    folder, file = str(kandinsky[2]), str(tmp_path / "a.png")
    few = ["--prior-steps", "2", "--steps", "2", "--device", "cpu"]
    assert command.main(["a cat", "--model", folder, "--size", "24", "-o", file, *few]) == 0
    assert Image.open(file).size == (24, 24)
    assert command.main(["again", file, "--model", folder, "--device", "cpu"]) == 0
    assert "the same pixels" in capsys.readouterr().out
    large = unclip.load(folder, device="cpu").at_size(24)
    saved = unclip.load(large.save(tmp_path / "large"), device="cpu")
    assert saved.size == 24 and saved.digest() == large.digest() != unclip.load(folder).digest()
    rows = [{row.stage: row for row in plan(folder, size=size).rows} for size in (None, 24)]
    assert rows[0]["decoder"].parameters == rows[1]["decoder"].parameters
    assert rows[0]["decoder"].activations < rows[1]["decoder"].activations
    for size in (0, -16, 22, True, 1 << 20):
        with pytest.raises(ValueError, match="size must be a multiple of 4, as this network needs"):
            saved.at_size(size)
    with pytest.raises(ValueError, match="the model icons draws 256 pixels"):
        unclip.load().at_size(128)
    with pytest.raises(ValueError, match="icons has upsamplers"):
        plan("icons", size=128)
