"""Pictures and texts in the place of a prompt: what one alone is, what is between, and what is none."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from pictures import apart
from PIL import Image
from tiny import randn
from tiny_glide import model as glide
from tiny_glide import picture as drawing
from tiny_karlo import karlo
from tiny_models import tiny_pipeline

import unclip
from unclip.app.command import main
from unclip.diffusion.samplers import SAMPLERS
from unclip.pipeline.blend import spherical_mean
from unclip.pipeline.canvas import fitted
from unclip.pipeline.edits import slerp
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import Decoder

pytestmark = pytest.mark.usefixtures("float32")
MODELS = {"unclip": tiny_pipeline, "karlo": karlo}
A, B = drawing(20), Image.new("RGB", (30, 17), (200, 30, 90))
GIVEN = {"seed": 5, "steps": 2, "prior_steps": 2, "upsampler_steps": 1}


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> Pipeline:
    return MODELS[request.param]()


def same(a: Image.Image | list[Image.Image], b: Image.Image | list[Image.Image]) -> bool:
    both = [one if isinstance(one, list) else [one] for one in (a, b)]
    return [one.tobytes() for one in both[0]] == [one.tobytes() for one in both[1]]


def seen(model: Pipeline, picture: Image.Image) -> torch.Tensor:
    return model.encode_image(fitted(picture, model.size))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_weighs_nothing_changes_nothing_to_the_byte(model, sampler):
    given = {**GIVEN, "sampler": sampler, "n": 2}
    alone = model.generate(image_prompt=A, **given)
    assert same(model.generate(image_prompt=[(A, 1), (B, 0)], **given), alone)
    assert same(model.generate(image_prompt=[("a dog", 0.0), (A, 0.4)], **given), alone)
    assert not same(model.generate(image_prompt=[(A, 0), (B, 1)], **given), alone)
    words = model.generate("a cat", **given)
    assert same(model.generate(image_prompt=[("a cat", 1), (B, 0)], **given), words)
    assert same(model.generate("a cat", image_prompt=(A, 0), **given), words)


def test_a_text_alone_is_the_prompt_and_a_picture_alone_its_embedding(model):
    words = model.generate("a cat", **GIVEN)
    assert same(model.generate(image_prompt="a cat", **GIVEN), words)
    assert same(model.generate(image_prompt=[("a cat", 3.0)], **GIVEN), words)
    drawn = model.generate(image_prompt=A, **GIVEN)
    assert isinstance(drawn, Image.Image)
    assert same(drawn, model.generate(image_embed=seen(model, A), **GIVEN)) and not same(drawn, words)


def test_what_is_between_is_on_the_great_circle(model):
    embeds = [seen(model, one) for one in (A, B)]
    length = 0.25 * embeds[0].norm() + 0.75 * embeds[1].norm()
    wanted = length * slerp(F.normalize(embeds[0]), F.normalize(embeds[1]), 0.75)
    mixed = model.generate(image_prompt=[(A, 1), (B, 3)], **GIVEN)
    assert apart(mixed, model.generate(image_embed=wanted, **GIVEN)) <= 1
    assert same(mixed, model.generate(image_prompt=[(A, 0.1), (B, 0.3)], **GIVEN))  # weights are shares
    assert apart(mixed, model.generate(image_prompt=[(B, 3), (A, 1)], **GIVEN)) <= 1
    assert apart(mixed, model.generate(image_embed=embeds[1], **GIVEN)) > 1


def test_texts_are_mixed_by_the_priors_embeddings_and_the_prompts_words_stay(model):
    of_text = model.embed_prompt(["a cat", "a dog"], seed=5, prior_steps=2)
    mixed = spherical_mean([*of_text.split(1), seen(model, A)], [0.5, 0.25, 0.25])
    drawn = model.generate("a cat", image_prompt=[("a dog", 0.5), (A, 0.5)], **GIVEN)
    assert apart(drawn, model.generate("a cat", image_embed=mixed, **GIVEN)) <= 1
    wordless = model.generate(image_prompt=[("a cat", 2), ("a dog", 1), (A, 1)], **GIVEN)
    assert apart(wordless, model.generate(image_embed=mixed, **GIVEN)) <= 1


def test_each_picture_has_a_stream_of_its_own_whatever_the_batch(model):
    prompts = ["a cat", "a dog"]
    drawn = model.generate(prompts, image_prompt=[(A, 1), "a car"], n=2, batch_size=4, **GIVEN)
    ones = model.generate(prompts, image_prompt=[(A, 1), "a car"], n=2, batch_size=1, **GIVEN)
    assert len(drawn) == 4 and all(apart(*pair) <= 1 for pair in zip(drawn, ones, strict=True))
    assert len({one.tobytes() for one in drawn}) == 4
    alone = model.generate("a dog", image_prompt=[(A, 1), "a car"], n=2, batch_size=1, **GIVEN)
    assert same(alone, ones[2:])


def test_guidance_moves_away_from_a_negative_prompt_that_is_mixed_with_nothing(model, monkeypatch):
    wishes = []
    monkeypatch.setattr(Pipeline, "decode", lambda self, wish: wishes.append(wish) or fitted(A, 8))
    monkeypatch.setattr(Pipeline, "upsample", lambda self, picture, wish: picture)
    model.generate(image_prompt=[A, "a cat"], negative_prompt="a dog", **GIVEN)
    [wish] = wishes
    words, embed = wish.unwanted
    assert words is None and wish.text is None
    torch.testing.assert_close(embed, model.embed_prompt("a dog", seed=5, prior_steps=2))
    model.generate("a car", image_prompt=A, negative_prompt="a dog", **GIVEN)
    assert wishes[1].unwanted[0] is not None and wishes[1].text is not None


def test_a_hole_is_filled_and_a_picture_drawn_over_by_an_image_prompt(model):
    mask = Image.new("L", A.size, 255)
    for drawn, other in (
        [model.inpaint(A, mask, image_prompt=one, resamplings=1, **GIVEN) for one in (A, B)],
        [model.redraw(A, strength=0.9, image_prompt=one, **GIVEN) for one in (A, B)],
    ):
        assert apart(drawn, other) > 1


def test_the_mean_of_directions():
    a, b, c = F.normalize(randn(3, 4, 6), dim=-1)
    for share in (0.1, 0.5, 0.9):
        torch.testing.assert_close(
            spherical_mean([a, 2 * b], [1 - share, share]), (1 + share) * slerp(a, b, share)
        )
    mean = spherical_mean([a, b, c], [0.2, 0.3, 0.5])
    torch.testing.assert_close(spherical_mean([c, a, b], [0.5, 0.2, 0.3]), mean)
    torch.testing.assert_close(mean.norm(dim=-1), torch.ones(4))
    axes = torch.eye(3)
    torch.testing.assert_close(
        spherical_mean([axes[:1], axes[1:2], axes[2:]], [1 / 3] * 3), torch.full((1, 3), 3**-0.5)
    )

    def spread(x: torch.Tensor) -> torch.Tensor:
        """What the mean makes least: the squared angles, by their shares."""
        parts = zip((a, b, c), (0.2, 0.3, 0.5), strict=True)
        return sum(w * F.cosine_similarity(x.double(), y.double(), dim=-1).acos() ** 2 for y, w in parts)

    for k in range(5):
        assert (spread(F.normalize(mean + 0.01 * randn(4, 6, seed=k), dim=-1)) > spread(mean)).all()
    assert spherical_mean([a], [1.0]) is a
    with pytest.raises(ValueError, match="points in opposite directions"):
        spherical_mean([a, -a], [0.5, 0.5])


def test_the_shipped_model_draws_what_lies_between(small_icons):
    """What CLIP sees of the second grows with its weight."""
    icons, given = small_icons, {"seed": 1, "steps": 5}
    ends = [icons.generate(text, **given) for text in ("a red heart", "a blue car")]
    path = [icons.generate(image_prompt=[(ends[0], 1 - s), (ends[1], s)], **given) for s in (0, 0.5, 1)]
    towards = seen(icons, ends[1]) - seen(icons, ends[0])
    likeness = [(seen(icons, one) @ towards[0]).item() for one in path]
    assert likeness[0] < likeness[1] < likeness[2]


@pytest.mark.attack
@pytest.mark.parametrize("options, said", [
    ({"image_prompt": []}, "image_prompt is empty"),
    ({"image_prompt": [(A, -1.0)]}, "a weight of image_prompt is a number from 0 to 10000, not -1.0"),
    ({"image_prompt": [(A, float("nan"))]}, "a weight of image_prompt is a number from 0 to 10000, not nan"),
    ({"image_prompt": [(A, float("inf"))]}, "a weight of image_prompt is a number from 0 to 10000, not inf"),
    ({"image_prompt": [(A, 10**400)]}, "a weight of image_prompt is a number from 0 to 10000, not 1000"),
    ({"image_prompt": [(A, 1e308), (B, 1e308)]}, "a number from 0 to 10000, not 1e+308"),
    ({"image_prompt": [(A, True)]}, "a weight of image_prompt is a number from 0 to 10000, not True"),
    ({"image_prompt": [(A, None)]}, "a weight of image_prompt is a number from 0 to 10000, not None"),
    ({"image_prompt": [(A, 0), (B, 0)]}, "the weights of the image prompt sum to 0"),
    ({"image_prompt": 7}, "an image prompt is of pictures, files and texts"),
    ({"image_prompt": [A, 7]}, "an image prompt is of pictures, files and texts"),
    ({"image_prompt": [(A, 1, 2)]}, "an image prompt is of pictures, files and texts"),
    ({"image_prompt": ["missing.png"]}, "there is no file missing.png"),
    ({"image_prompt": [A, " "]}, "the prompt is empty"),
    ({"image_prompt": [A, "a\0cat"]}, "which is no character of a text"),
    ({"image_prompt": A, "image_embed": torch.zeros(1, 16)}, "give one of them"),
    ({"image_prompt": A, "clip_guidance_scale": 2.0}, "clip_guidance_scale are of words"),
    ({"image_prompt": A, "n": 0}, "n must be at least 1"),
    ({"image_prompt": A, "steps": 0}, "steps"),
    ({"image_prompt": A, "image": A}, "inpainting takes both an image and a mask"),
])  # fmt: skip
def test_what_is_no_image_prompt(monkeypatch, options, said):
    monkeypatch.setattr(Decoder, "sample", lambda *_, **__: pytest.fail("work has begun"))
    monkeypatch.setattr(Pipeline, "sample_prior", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=re.escape(said)):
        tiny_pipeline().generate(**options)


@pytest.mark.attack
def test_models_that_cannot_take_one_say_so(monkeypatch):
    with pytest.raises(ValueError, match="tiny-glide takes no image_prompt: its decoder knows no image"):
        glide().generate("cat", image_prompt=A)
    blind = tiny_pipeline()
    monkeypatch.setattr(type(blind), "sees", False)
    with pytest.raises(ValueError, match="the CLIP of tiny sees no pictures, which image_prompt needs"):
        blind.generate(image_prompt=["a cat", A])
    assert same(blind.generate(image_prompt="a cat", **GIVEN), tiny_pipeline().generate("a cat", **GIVEN))


def test_the_command(tmp_path, monkeypatch, capsys):
    model = tiny_pipeline()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: model)
    monkeypatch.setattr(unclip, "_loaded", lambda *where: model)
    A.save("my cat.png")
    few = ["--steps", "2", "--upsampler-steps", "1", "--seed", "5"]
    assert main(["--image-prompt", "my cat.png", *few]) == 0
    wanted = model.generate(image_prompt=A, steps=2, upsampler_steps=1, seed=5)
    assert apart(Image.open("my-cat.png"), wanted) == 0
    mixed = ["--image-prompt", "my cat.png", "0.7", "--image-prompt", "a v1.2 dog", ".3"]
    assert main(["a car", *mixed, *few]) == 0
    wanted = unclip.generate(
        "a car", image_prompt=[("my cat.png", 0.7), ("a v1.2 dog", 0.3)], steps=2, upsampler_steps=1, seed=5
    )
    assert apart(Image.open("a-car.png"), wanted) == 0
    for words, said in (
        (["my cat.png", "a dog"], "a weight or none, not 'a dog'; the prompt goes before it"),
        (["my cat.png", "1", "2"], "a weight or none, not '2'"),
        (["no.png"], "there is no file no.png"),
        (["my cat.png", "nan"], "a weight of image_prompt is a number from 0 to 10000, not nan"),
    ):
        assert main(["--image-prompt", *words]) == 2
        assert said in capsys.readouterr().err
