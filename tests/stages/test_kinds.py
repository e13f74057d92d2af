"""The kinds of condition that there are: what training leaves out of each, by which rate, in which order."""

from __future__ import annotations

import pytest
import torch
from tiny import DIM, INPUTS, decoder, glide, randn, seeded, text, tokens, unit

from unclip.stages import LowRes, Process
from unclip.stages.inpaint import erase

N = 200
RATES = {"drop_image": 0.2, "drop_text": 0.4, "drop_class": 0.6}
MOST = {"text_embed_dim": DIM, "in_channels": 7, **INPUTS}


def picture(n: int) -> dict[str, torch.Tensor]:
    return {"image": randn(n, 3, 8, 8).clamp(-1, 1), "mask": torch.ones(n, 1, 8, 8)}


def test_each_kind_is_left_out_by_its_rate_and_draws_in_its_place():
    """By one draw a picture for an embedding, its noise, one for all of the text, one for the class, then
    what is forgotten of the picture: another order would be another training.
    """
    stage = decoder(net=MOST, embed_noise=0.3, inpaint=True, **RATES)
    told = stage.conditions(
        N, unit(N), **text(N), text_embed=unit(N, 7), classes=torch.arange(N) % 3, **picture(N)
    )
    left, source = stage.drop(told, seeded(3)), seeded(3)
    image = torch.rand(N, generator=source) < 0.2
    noise = torch.randn(N, DIM, generator=source)
    words = torch.rand(N, generator=source) < 0.4
    classes = torch.rand(N, generator=source) < 0.6
    wanted = {
        "image_embed": stage.whiten(unit(N)) + 0.3 * noise,
        "has_image": ~image,
        "text": told["text"],
        "text_mask": told["text_mask"] & ~words[:, None],
        "text_embed": told["text_embed"] * ~words[:, None],
        "classes": torch.where(classes, -1, told["classes"]),
        "known": erase(told["known"], source),
    }
    assert left.keys() == wanted.keys() == told.keys() and (wanted["known"] != told["known"]).any()
    for key, value in wanted.items():
        assert torch.equal(left[key], value), key


def test_a_text_of_tokens_is_left_out_by_the_rate_of_texts():
    stage = glide(inpaint=True, **RATES)
    told = stage.conditions(N, **tokens(N), **picture(N))
    left, source = stage.drop(told, seeded(3)), seeded(3)
    words = torch.rand(N, generator=source) < 0.4
    assert torch.equal(left["token_mask"], told["token_mask"] & ~words[:, None])
    assert torch.equal(left["known"], erase(told["known"], source))
    assert torch.equal(left["tokens"], told["tokens"]) and left.keys() == told.keys()


@pytest.mark.parametrize(
    "make, values, empty",
    [
        (decoder, text(2), {"text": (2, 1, 5), "text_mask": (2, 1)}),
        (glide, tokens(2), {"tokens": (2, 6), "token_mask": (2, 6)}),
    ],
)
def test_words_come_with_their_mask_and_none_with_one_that_hides_them(make, values, empty):
    (words, mask), stage = values, make()
    told, whole, nothing = (stage.conditions(2, **given) for given in (values, {words: values[words]}, {}))
    assert torch.equal(told[words], values[words]) and torch.equal(told[mask], values[mask])
    assert whole[mask].all() and whole[mask].shape == values[mask].shape
    assert {key: nothing[key].shape for key in empty} == empty and not nothing[mask].any()


def test_a_crop_of_an_upsampler_that_inpaints_has_a_known_part_of_its_size():
    net = {"image_size": 16, "in_channels": 10}
    stage = decoder(net=net, process=Process(predicts="v"), low_res=LowRes(size=4), inpaint=True)
    for side in (4, 2):
        told = stage.conditions(2, low_res=randn(2, 3, side, side).clamp(-1, 1))
        assert told["known"].shape == (2, 4, 4 * side, 4 * side) and told["base"].shape[2:] == (4 * side,) * 2
        assert (
            stage.denoiser(randn(2, 3, 4 * side, 4 * side), torch.tensor([3, 9]), **told).x0.isfinite().all()
        )


def test_guidance_starts_from_no_picture_without_a_class_where_none_is_known():
    """Not even one of several."""
    stage = decoder(net={"classes": 3}, drop_class=0.0)
    told, mixed = (stage.conditions(2, classes=torch.tensor(classes)) for classes in ([0, 1], [2, -1]))
    with pytest.raises(ValueError, match="guidance_scale must be 1"):
        stage.denoise(told, mixed, 2.0)
