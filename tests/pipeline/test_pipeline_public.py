"""Pipelines as public models are: a tokenizer and a guide of their own, the text "", inpainting, classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import apart
from PIL import Image
from tiny import decoder, seeded
from tiny_glide import FEW, guide, mask, model, picture
from tiny_karlo import karlo
from tiny_models import SMALL, tiny_clip

import unclip
from unclip.app import command
from unclip.checkpoint import CheckpointError
from unclip.data.images import to_tensor
from unclip.options import Options
from unclip.pipeline.canvas import canvas_of
from unclip.pipeline.pipeline import Pipeline
from unclip.pipeline.request import Wish
from unclip.stages import LowRes, Sampling
from unclip.stages.tokenizer import GlideTokenizer

pytestmark = pytest.mark.usefixtures("float32")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_with_its_own_text_transformer_draws():
    made = model()
    cat, dog = made.generate(["cat", "dog"])
    assert cat.size == (16, 16) and apart(cat, dog) > 3
    assert apart(cat, made.generate("CAT")) <= 1  # alone as in a batch, and texts are lower-cased
    assert apart(cat, made.generate("cat", negative_prompt="dog")) > 1
    with pytest.warns(UserWarning, match="longer than 6 tokens; this was cut off: 'sh'"):
        made.generate("a catfish", steps=1)
    with pytest.raises(ValueError, match="no CLIP that knows pictures, which clip_guidance_scale needs"):
        made.generate("cat", clip_guidance_scale=1.0)


@pytest.mark.bitwise
def test_both_kinds_of_text_stand_side_by_side():
    prompts = model(clip=tiny_clip()).encode_text(["cat", "a dog"])
    assert prompts.texts == ["cat", "a dog"] and prompts.ids.shape == (2, 6)
    assert prompts.mask.sum(1).tolist() == [2, 5] and prompts.clip.mask.sum(1).tolist() == [3, 4]
    twice = prompts.repeat(2)
    assert twice.texts == ["cat", "cat", "a dog", "a dog"] and torch.equal(twice[2:].ids[0], prompts.ids[1])
    short = prompts[:1]
    short = replace(short, clip=short.clip.trimmed())
    assert torch.equal(short.padded_like(prompts).clip.mask[0], prompts.clip.mask[0])


@pytest.mark.parametrize("parts, said", [
    ({"tokenizer": None}, "comes without its tokenizer"),
    ({"tokenizer": GlideTokenizer({"a": 0, "<|endoftext|>": 1}, [], 7)}, "7 tokens of a text.*takes 6"),
    ({"guide": guide(16)}, "CLIP of noised pictures does not fit .* image_size is 16, the decoder's 8"),
])  # fmt: skip
def test_parts_that_do_not_fit(parts, said):
    with pytest.raises(CheckpointError, match=said):
        model(**parts)


@pytest.mark.parametrize("sampler", [None, "ddim"])  # the mean, as publicly, or the score
def test_the_guide_leads_to_its_text(sampler):
    made = model(guide=guide())
    text, wanted = made.encode_text(["cat"]), made.guide.encode_text(["cat"])
    one, similarity = torch.ones(1, dtype=torch.int64), []
    for scale in (0, 3, 30):
        options = Options(clip_guidance_scale=scale, guidance_scale=1, steps=10, sampler=sampler)
        picture = made.decode(Wish([0], text=text, options=options))
        similarity.append((made.guide.encode_image(picture, one) * wanted).sum().item())
    assert similarity[0] + 0.01 < similarity[1] < similarity[2]


def test_saved_loaded_and_saved_again_it_is_the_same_bytes(tmp_path):
    made = model(inpaint=True, guide=guide())
    loaded = unclip.load(made.save(tmp_path / "once"), "cpu")
    once, twice = (bytes_of(one.save(tmp_path / name)) for one, name in ((made, "once"), (loaded, "twice")))
    assert once == twice and {"guide.safetensors", "tokenizer/vocab.bpe.gz", "model.json"} <= once.keys()
    options = {"n": 2, "clip_guidance_scale": 1.0}
    pairs = zip(made.generate("cat", **options), loaded.generate("cat", **options), strict=True)
    assert all(apart(*pair) == 0 for pair in pairs)


def test_a_classifier_is_saved_too(tmp_path):
    from unclip.guides.classifier import Classifier, ClassifierStageConfig
    from unclip.nets.classifier import ClassifierConfig

    net = ClassifierConfig(**SMALL, classes=3)
    classifier = Classifier(ClassifierStageConfig(net=net, scale=4.0)).eval().requires_grad_(False)
    for weight in classifier.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=seeded(1))
    made = Pipeline(decoder(net={}, sampling=FEW), name="led", classifier=classifier)
    loaded = Pipeline.load(made.save(tmp_path / "led"), "cpu")
    drawn = loaded.generate(class_=2)
    assert apart(drawn, made.generate(class_=2)) == 0
    assert apart(drawn, made.generate(class_=2, classifier_scale=4.0)) == 0  # its own scale is the default
    assert apart(drawn, made.generate(class_=2, classifier_scale=0.0)) > 0


@pytest.mark.bitwise
def test_guidance_starts_from_the_empty_text(monkeypatch):
    made, told = karlo(), {}
    for name in ("prior", "decoder"):
        stage = getattr(made, name)
        monkeypatch.setattr(
            stage,
            "sample",
            lambda conditions, noise, sampling, null, *rest, name=name, real=stage.sample: (
                told.update({name: (conditions, null)}),
                real(conditions, noise, sampling, null, *rest),
            )[1],
        )
    assert made.generate("a cat").size == (16, 16)
    cat, empty = made.encode_text(["a cat"]), made.encode_text([""])
    padded = empty.padded_like(cat).clip
    for name, (conditions, null) in told.items():
        assert torch.equal(conditions["text_embed"], cat.clip.raw), name
        assert (cat.clip.raw.norm() - 1).abs() > 1e-3  # not of length 1: raw it is
        assert torch.equal(null["text_embed"], empty.clip.raw)
        assert torch.equal(null["text"], padded.tokens) and torch.equal(null["text_mask"], padded.mask)
        assert null["text"].shape == conditions["text"].shape
    conditions, null = told["decoder"]
    assert conditions["has_image"].all() and not null["has_image"].any()
    made.generate("a cat", negative_prompt="a dog")
    assert told["decoder"][1]["has_image"].all()  # the embedding of what is not wanted
    made.generate("a cat", guidance_scale=1, prior_guidance_scale=1)
    assert told["prior"][1] is None and told["decoder"][1] is None


def test_padding_the_empty_text_changes_nothing():
    made = karlo()
    cat, empty = made.encode_text(["a cat in the hat"]), made.encode_text([""])
    x, t = torch.randn(1, 3, 8, 8, generator=seeded(0)), torch.tensor([400])
    outs = [
        made.decoder.denoiser(x, t, **made.conditions(made.decoder, 1, None, text)).eps
        for text in (empty, empty.padded_like(cat))
    ]
    torch.testing.assert_close(*outs, atol=1e-5, rtol=0)


@pytest.mark.bitwise
def test_of_raw_candidates_the_nearest_by_angle_is_kept(monkeypatch):
    made = karlo()
    text = made.encode_text(["a cat"])
    near, far = 0.1 * text.clip.embed, 9 * F.normalize(text.clip.embed.flip(1) + 0.4 * text.clip.embed)
    monkeypatch.setattr(made.prior, "sample", lambda *_: torch.cat([far, near]))
    sampling = made.prior.config.sampling.model_copy(update={"candidates": 2})
    monkeypatch.setattr("unclip.pipeline.drawing.override", lambda *_, **__: sampling)
    assert torch.equal(made.sample_prior(text, [0]), near)


@pytest.mark.bitwise
def test_a_class_reaches_every_stage_and_is_asked_for(monkeypatch):
    base = decoder(net={"classes": 3}, drop_class=0.0, sampling=Sampling(steps=2))
    up = decoder(
        net={"classes": 3, "image_size": 16, "in_channels": 6},
        drop_class=0.0,
        low_res=LowRes(size=8),
        sampling=Sampling(steps=2),
    )
    made = Pipeline(base, upsamplers=[up], name="adm")
    with pytest.raises(ValueError, match="adm knows no picture without a class: ask for one of 0 to 2"):
        made.generate()
    asked, real = [], up.network.forward
    monkeypatch.setattr(
        up.network, "forward", lambda x, t, classes: (asked.append(classes), real(x, t, classes=classes))[1]
    )
    assert made.generate(class_=2).size == (16, 16)
    assert all((classes == 2).all() for classes in asked) and len(asked) == 2
    with pytest.raises(ValueError, match="its guidance_scale must be 1"):
        made.generate(class_=2, guidance_scale=2.0)


def test_the_likelihood_of_pictures_heeds_their_captions():
    from inference.measure.likelihood import likelihood

    made = model()

    def bits(caption: str) -> float:
        samples = [{"image": picture(8), "caption": caption, "key": "0", "record": {}}]
        report = likelihood(made.decoder, samples, tokenizer=made.tokenizer, steps=4, size=8)
        assert "text" in report["given"]
        return report["bits_per_dim"]

    assert bits("a cat") == bits("a cat") != bits("a dog")


def test_what_is_kept_is_kept_exactly_and_the_rest_is_painted():
    made, image = model(inpaint=True), picture()
    drawn = made.generate(["cat", "dog"], image=image, mask=mask())
    for one in drawn:
        assert apart(one.crop((8, 0, 16, 16)), image.crop((8, 0, 16, 16))) == 0
        assert apart(one.crop((0, 0, 8, 16)), image.crop((0, 0, 8, 16))) > 50
    assert apart(*drawn) > 3 and apart(drawn[0], made.generate("cat")) > 3  # nothing need be known
    hole = mask(box=(3, 5, 4, 6))  # one pixel, of which a pixel of the base is a quarter
    odd = made.generate("cat", image=image, mask=hole, guidance_scale=1)
    changed = (np.array(odd) != np.array(image)).any(2)
    assert changed.sum() == 1 and changed[5, 3]


@pytest.mark.bitwise
def test_a_picture_of_any_size_is_brought_to_every_stages():
    image, white = picture(64), mask(64, (0, 0, 33, 64))
    canvas = canvas_of(image, white)
    known, kept = canvas.at(8)
    assert known.shape == (1, 3, 8, 8) and kept.shape == (1, 1, 8, 8)
    assert torch.equal(known[0], to_tensor(image.resize((8, 8), Image.Resampling.BICUBIC)))
    assert (kept[..., 5:] == 1).all() and (kept[..., :5] == 0).all()  # a part of the fifth is painted
    assert torch.equal(canvas.at(64)[1], 1 - to_tensor(white.convert("RGB"))[None, :1].clamp(min=0))
    wide = Image.new("RGB", (20, 16))
    wide.paste(image.resize((16, 16)), (2, 0))
    with pytest.warns(UserWarning, match="20 x 16 pixels; only its middle square is used"):
        middle = canvas_of(wide, Image.new("L", (20, 16), 255))
    assert apart(middle.picture, image.resize((16, 16))) == 0


@pytest.mark.parametrize("given, said", [
    ({"image": picture()}, "both an image and a mask"),
    ({"mask": mask()}, "both an image and a mask"),
    ({"image": picture(), "mask": mask(8)}, "mask is 8 x 8 pixels, the picture 16 x 16"),
    ({"image": picture(), "mask": mask(box=(0, 0, 0, 0))}, "mask is black all over"),
])  # fmt: skip
@pytest.mark.parametrize("inpaints", [True, False])
def test_inpainting_that_cannot_be(inpaints, given, said):
    with pytest.raises(ValueError, match=said):
        model(inpaints).generate("cat", **given)


def test_the_command_inpaints(tmp_path, capsys):
    folder = model(inpaint=True).save(tmp_path / "model")
    picture().save(tmp_path / "in.png")
    mask().save(tmp_path / "mask.png")
    files = ["--image", str(tmp_path / "in.png"), "--mask", str(tmp_path / "mask.png")]
    out = tmp_path / "out.png"
    asked = ["cat", "--model", str(folder), "-o", str(out), "--device", "cpu"]
    assert command.main([*asked, *files]) == 0
    kept = (8, 0, 16, 16)
    assert apart(Image.open(out).crop(kept), picture().crop(kept)) == 0
    out.unlink()
    (tmp_path / "mask.png").write_bytes(b"no picture")
    assert command.main([*asked, *files]) == 2 and not out.exists()
    assert "mask.png" in capsys.readouterr().err
