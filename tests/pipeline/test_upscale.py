"""A picture of the user's through the upsamplers: as the cascade draws it, in tiles without a seam beyond."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from pictures import apart, pixels
from PIL import Image
from tiny import decoder
from tiny import upsampler as tiny_upsampler
from tiny_glide import model as glide
from tiny_karlo import karlo
from tiny_models import WIDTH, tiny_pipeline

import unclip
from unclip.app.command import main
from unclip.data.images import to_pil, to_tensor
from unclip.diffusion.noise import fold
from unclip.diffusion.samplers import SAMPLERS
from unclip.diffusion.tiles import places
from unclip.pipeline.canvas import fitted
from unclip.pipeline.pipeline import Pipeline
from unclip.pipeline.request import Wish
from unclip.stages import Decoder, LowRes, Process, Sampling

pytestmark = pytest.mark.usefixtures("float32")


def seeing() -> Pipeline:
    """One whose upsampler takes image embeddings, too."""
    whole = tiny_pipeline()
    net = {"image_size": 64, "in_channels": 6, "pixel_unshuffle": 4, "image_embed_dim": WIDTH}
    stage = decoder(
        net=net, process=Process(predicts="v"), low_res=LowRes(size=16), sampling=Sampling(steps=2)
    )
    stage.set_statistics(torch.zeros(WIDTH), torch.ones(WIDTH))
    return Pipeline(whole.decoder, whole.prior, [stage], whole.clip, "seeing")


MODELS = {
    "unclip": (tiny_pipeline, None),
    "of embeddings": (seeing, "a cat"),
    "glide": (glide, "cat"),
    "karlo": (karlo, None),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request) -> tuple[Pipeline, str | None]:
    make, prompt = MODELS[request.param]
    return make(), prompt


def small(model: Pipeline) -> int:
    """Pixels a side that the first upsampler starts from."""
    return model.upsamplers[0].config.low_res.size


def drawing(width: int, height: int) -> Image.Image:
    """Soft stripes, of which a neighbour differs little."""
    y, x = np.mgrid[:height, :width]
    rgb = [np.sin(0.3 * x + 0.1 * y), np.cos(0.2 * y), np.sin(0.15 * (x - y))]
    return Image.fromarray((127.5 * (np.stack(rgb, 2) + 1)).astype(np.uint8))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_of_the_upsamplers_input_is_enlarged_as_the_cascade_does_it(case, sampler, monkeypatch):
    """To the byte: the same seeds, prompt and steps, with the picture in the decoder's place."""
    model, prompt = case
    picture = drawing(small(model), small(model))
    upscaled = model.upscale(picture, prompt, seed=5, sampler=sampler)
    for stage in model.upsamplers:
        sampling = stage.config.sampling.model_copy(update={"sampler": sampler})
        monkeypatch.setattr(stage, "config", stage.config.model_copy(update={"sampling": sampling}))
    monkeypatch.setattr(Pipeline, "decode", lambda *_: to_tensor(picture)[None])
    wanted = model.generate(prompt or ("a cat" if model.takes_prompt else None), seed=5)
    assert upscaled.size == wanted.size and upscaled.tobytes() == wanted.tobytes()


class Greys(torch.nn.Module):
    """Sees a grey in every tile, another for each: as far apart as tiles can be."""

    def __init__(self, stage: Decoder) -> None:
        super().__init__()
        self.schedule = stage.schedule

    def forward(self, x: torch.Tensor, t: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
        noisy, base = x.split(3, dim=1)
        level = self.schedule.at(t.long() + 1).like(noisy)
        grey = (90 * base.mean((1, 2, 3), keepdim=True)).sin()
        return (level.alpha * noisy - grey) / level.sigma  # v


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("size", [(56, 16), (20, 50)])
def test_there_is_no_seam_at_a_tiles_border(sampler, size):
    """Pixels on both sides of it differ no more than others, whatever tiles make of a picture."""
    model = tiny_pipeline()
    [stage] = model.upsamplers
    stage.network = Greys(stage)
    drawn = pixels(model.upscale(drawing(*size), seed=1, sampler=sampler, upsampler_steps=4))
    assert np.ptp(drawn) > 50  # tiles differ indeed
    for axis, length in enumerate(size[::-1]):
        starts = [4 * start for start in places(length, 16)]
        borders = np.array([*starts[1:], *(start + 64 for start in starts[:-1])], int) - 1
        across = abs(np.diff(drawn, axis=axis)).mean((1 - axis, 2))
        assert not len(borders) or across[borders].max() < np.delete(across, borders).mean()


def test_tiles_at_a_time_change_nothing_and_progress_counts_steps_of_the_whole():
    model, picture, told, levels = tiny_pipeline(), drawing(50, 30), [], []
    given = {"seed": 2, "upsampler_steps": 3}
    drawn = model.upscale(
        picture, **given, progress=lambda *what: told.append(what), watch=lambda step: levels.append(step.t)
    )
    assert drawn.size == (200, 120)
    assert told == [("upsampler 64", k, 3) for k in (1, 2, 3)] and len(levels) == 3 and levels[-1] == 0
    assert apart(model.upscale(picture, **given, batch_size=1), drawn) <= 1
    assert model.upscale(picture, **given).tobytes() == drawn.tobytes()
    assert apart(model.upscale(picture, upsampler_steps=3, seed=3), drawn) > 3


def test_tiles_are_guided_as_their_stage_says(monkeypatch):
    model, told, denoise = seeing(), [], Decoder.denoise
    [stage] = model.upsamplers
    sampling = Sampling(
        steps=2,
        guidance_scale=3.0,
        guidance_rescale=0.4,
        guidance_interval=(0.1, 0.9),
        apg=(0.5, 9.0, -0.2),
        threshold="dynamic",
    )
    monkeypatch.setattr(stage, "config", stage.config.model_copy(update={"sampling": sampling}))

    def seen(self: Decoder, conditions, null, *more, **options):
        told.append((conditions, null, more, options))
        return denoise(self, conditions, null, *more, **options)

    monkeypatch.setattr(Decoder, "denoise", seen)
    model.upscale(drawing(20, 16), seed=1, batch_size=1)
    assert len(told) == 2
    for conditions, null, more, options in told:
        assert more == (3.0,) and options == sampling.of_guidance
        assert conditions["has_image"].all() and not null["has_image"].any()
        assert torch.equal(null["base"], conditions["base"])


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (15, 16), (16, 17), (37, 5), (33, 35)])
def test_sizes_that_no_tile_has(size):
    """What is smaller than a tile is mirrored at its edges, enlarged, and cut out."""
    model, picture = tiny_pipeline(), drawing(*size)
    (top, bottom), (left, right) = (
        (short // 2, short - short // 2) for short in (max(16 - side, 0) for side in size[::-1])
    )
    wide = Image.fromarray(np.pad(np.array(picture), ((top, bottom), (left, right), (0, 0)), "reflect"))
    whole = model.upscale(wide, seed=4)
    assert min(wide.size) >= 16 and whole.size == (4 * wide.width, 4 * wide.height)
    box = (4 * left, 4 * top, 4 * (left + picture.width), 4 * (top + picture.height))
    assert model.upscale(picture, seed=4).tobytes() == whole.crop(box).tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "YCbCr", "F"])
def test_pictures_of_any_mode(mode, tmp_path):
    model, picture = tiny_pipeline(), drawing(16, 16)
    plain = picture.convert("L") if mode in ("I;16", "F") else picture
    odd = plain.convert(mode)
    alike = odd.convert("RGB") if mode not in ("I;16", "F") else None
    drawn = model.upscale(odd, seed=1)
    assert drawn.mode == "RGB" and drawn.size == (64, 64)
    if alike is not None:
        assert apart(drawn, model.upscale(alike, seed=1)) <= 1


def test_a_file_is_turned_upright_and_what_is_transparent_is_white(tmp_path):
    model, picture = tiny_pipeline(), drawing(16, 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = picture.transpose(Image.Transpose.ROTATE_270)
    drawn = model.upscale(tmp_path / "turned.png", seed=1)
    assert drawn.size == (40, 64) and drawn.tobytes() == model.upscale(upright, seed=1).tobytes()
    clear = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    white = model.upscale(Image.new("RGB", (16, 16), "white"), seed=1)
    assert model.upscale(clear, seed=1).tobytes() == white.tobytes()


@pytest.mark.parametrize("size, wanted", [
    ((8, 8), (64, 64)), ((5, 7), (40, 56)), ((16, 9), (64, 36)), ((17, 8), (34, 16)), ((40, 33), (80, 66)),
])  # fmt: skip
def test_a_picture_enters_the_chain_where_it_fits(size, wanted):
    """Of 8 -> 16 -> 32 -> 64 pixels a small picture goes through all, a large one through the last."""
    chain = [tiny_upsampler(16, 8), tiny_upsampler(32, 16), tiny_upsampler(64, 32)]
    model = Pipeline(decoder(net={}), upsamplers=chain, name="chain")
    told = []
    drawn = model.upscale(drawing(*size), progress=lambda stage, *_: told.append(stage))
    factor = wanted[0] // size[0]
    assert drawn.size == wanted
    assert list(dict.fromkeys(told)) == [f"upsampler {side}" for side in (16, 32, 64) if 64 // side < factor]


def test_an_upsampler_of_embeddings_has_clips_of_the_picture_or_the_priors_of_a_prompt():
    model, picture = seeing(), drawing(16, 16)
    x = to_tensor(picture)[None]
    seeds = [fold(3, 0)]
    for prompt, embed in (
        (None, model.encode_image(fitted(picture, model.size))),
        ("a cat", model.embed_prompt("a cat", seed=3)),
    ):
        wanted = to_pil(model.upsample(x, Wish(seeds, embed=embed))[0])
        assert model.upscale(picture, prompt, seed=3).tobytes() == wanted.tobytes()
    assert apart(model.upscale(picture, seed=3), model.upscale(picture, "a cat", seed=3)) > 0


def test_words_that_no_upsampler_reads_are_said():
    model, picture = tiny_pipeline(), drawing(16, 16)
    with pytest.warns(UserWarning, match="the upsamplers of tiny take no prompt"):
        drawn = model.upscale(picture, "a cat", seed=1)
    assert drawn.tobytes() == model.upscale(picture, seed=1).tobytes()
    with torch.random.fork_rng():
        reader = glide()
    assert apart(reader.upscale(picture, "cat"), reader.upscale(picture)) > 0


def test_the_shipped_model_upscales_without_a_seam():
    icons = unclip.load("icons", "cpu")
    side = icons.upsamplers[-1].config.low_res.size
    heart = icons.generate("a red heart", seed=1, steps=8).resize((side * 3 // 2, side))
    drawn = icons.upscale(heart, upsampler_steps=2, seed=1)
    assert drawn.size == (icons.size * 3 // 2, icons.size)
    across = abs(np.diff(pixels(drawn), axis=1)).mean((0, 2))
    for border in (icons.size // 2 - 1, icons.size - 1):
        beside = np.r_[across[border - 8 : border], across[border + 1 : border + 9]]
        assert across[border] < 1.25 * beside.mean()  # 1.7 where tiles are drawn each by itself
    again = np.array(drawn.resize(heart.size, Image.Resampling.BOX)).astype(float)
    assert abs(again - np.array(heart)).mean() < 16  # still the same picture


@pytest.mark.attack
@pytest.mark.parametrize("options, said", [
    ({"picture": "missing.png"}, "there is no file missing.png"),
    ({"picture": 7}, "a picture is one of PIL"),
    ({"picture": Image.new("RGB", (1100, 1000))}, "becomes 4,400 x 4,000"),
    ({"picture": Image.new("RGB", (300_000, 1))}, "becomes 1,200,000 x 64"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"prompt": ["a cat", "a dog"]}, "by one prompt or none, not by 2"),
    ({"prompt": " "}, "the prompt is empty"),
    ({"prompt": 7}, "a prompt must be text, not 7"),
    ({"seed": 0.5}, "seed must be an integer"),
    ({"upsampler_steps": 0}, "upsampler_steps"),
    ({"steps": 5}, "to upscale takes no steps"),
    ({"guidance_scale": 3.0}, "to upscale takes no guidance_scale"),
    ({"prior_steps": 5}, "to upscale takes no prior_steps"),
    ({"negative_prompt": "a dog"}, "negative_prompt"),
    ({"sampler": "euler"}, "sampler"),
    ({"class_": 1}, "takes no class"),
    ({"image_prompt": "a dog"}, "to upscale takes no image_prompt"),
    ({"mask": Image.new("L", (16, 16))}, "to upscale takes no mask"),
])  # fmt: skip
def test_what_cannot_be_upscaled(monkeypatch, options, said):
    monkeypatch.setattr(Pipeline, "upsample", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=re.escape(said)):
        tiny_pipeline().upscale(**{"picture": drawing(16, 16), **options})


def test_a_class_that_only_the_decoder_needs_is_not_asked_for():
    base = decoder(net={"classes": 3, "image_size": 16}, drop_class=0.0)
    model = Pipeline(base, upsamplers=[tiny_upsampler()], name="classes")
    assert model.upscale(drawing(16, 16)).size == (64, 64)
    with pytest.raises(ValueError, match="to upscale takes no class_"):
        model.upscale(drawing(16, 16), class_=1)
    with pytest.raises(ValueError, match="knows no picture without a class"):
        model.generate()


@pytest.mark.attack
def test_a_model_without_an_upsampler_says_so(monkeypatch):
    monkeypatch.setattr(Decoder, "sample", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match="the model lone has no upsampler, and cannot upscale"):
        Pipeline(decoder(net={}), name="lone").upscale(drawing(8, 8))


def test_the_command_and_the_function(tmp_path, monkeypatch, capsys):
    model = tiny_pipeline()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: model)
    monkeypatch.setattr(unclip, "_loaded", lambda *where: model)
    drawing(40, 20).save("my cat.png")
    assert main(["upscale", "my cat.png", "--upsampler-steps", "2", "--batch-size", "2"]) == 0
    drawn = Image.open("my-cat-upscale.png")
    assert drawn.size == (160, 80)
    assert apart(drawn, unclip.upscale("my cat.png", upsampler_steps=2, batch_size=2, device="cpu")) == 0
    assert main(["upscale", "my cat.png", "--steps", "3"]) == 2
    assert "to upscale takes no steps" in capsys.readouterr().err
