"""CLIP's similarity as something to climb: of whole pictures and of cuts, against its formula by hand."""

from __future__ import annotations

import pytest
import torch
from clips import RESNET, tiny
from tiny_models import tiny_pipeline

from unclip.diffusion.noise import Noise
from unclip.guides.similarity import Cutouts, similarity

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture(scope="module")
def clip():
    return tiny(RESNET)


def picture(n: int = 3, height: int = 48, width: int = 80) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def test_cuts_are_squares_within_the_picture_and_of_its_own_stream():
    """Numbered pixels tell where a cut was taken."""
    numbered = torch.arange(48.0 * 80).view(1, 1, 48, 80).expand(3, 3, 48, 80)
    cutouts = Cutouts(40, Noise([5, 6, 7]))
    first, second = cutouts(numbered), cutouts(numbered)
    sides = set()
    for row in (*first, *second):
        assert len(row) == 40
        for cut in row:
            side = cut.shape[-1]
            assert cut.shape == (1, 3, side, side) and 24 <= side <= 48
            top, left = divmod(int(cut[0, 0, 0, 0]), 80)
            assert torch.equal(cut[0], numbered[0, :, top : top + side, left : left + side])
            sides.add(side)
    assert len(sides) > 20 and {24, 48} & sides  # small ones and the whole height both occur
    places = [[int(cut[0, 0, 0, 0]) for cut in row] for row in (*first, *second)]
    assert len({tuple(row) for row in places}) == 6  # another for every picture and every call
    alone = Cutouts(40, Noise([6]))
    for of_all in (first, second):
        assert all(torch.equal(a, b) for a, b in zip(alone(numbered[1:2])[0], of_all[1], strict=True))


def test_the_mean_over_cuts_of_the_scaled_cosine(clip):
    x, words = picture(), clip.encode_text(["a cat", "a dog", "a car"]).embed
    got = similarity(clip, words, 2.0, Cutouts(4, Noise([1, 2, 3])))(x)
    cuts = Cutouts(4, Noise([1, 2, 3]))(x)
    for row, of, word in zip(cuts, got, words, strict=True):
        cosines = [clip.encode_image(cut)[0] @ word for cut in row]
        torch.testing.assert_close(of, 2.0 * clip.logit_scale * sum(cosines) / 4, rtol=1e-4, atol=1e-4)
    whole = similarity(clip, words, 2.0)(x)
    torch.testing.assert_close(whole, 2.0 * clip.logit_scale * (clip.encode_image(x) * words).sum(1))


def test_the_gradient_reaches_every_part_that_was_cut(clip):
    x, words = picture(1, 64, 64).requires_grad_(), clip.encode_text(["a cat"]).embed
    objective = similarity(clip, words, 1.0, Cutouts(2, Noise([9])))
    (got,) = torch.autograd.grad(objective(x).sum(), x)
    marks = torch.zeros(1, 3, 64, 64, requires_grad=True)
    touched = sum(cut.sum() for cut in Cutouts(2, Noise([9]))(marks)[0])
    (where,) = torch.autograd.grad(touched, marks)
    assert (got[where == 0] == 0).all() and (where == 0).any()
    assert (got[where > 0] != 0).float().mean() > 0.9


def test_a_pipeline_climbs_by_cuts_and_refuses_them_where_nothing_climbs():
    model = tiny_pipeline()
    given = {"steps": 3, "upsampler_steps": 1, "clip_guidance_scale": 50.0}
    whole, cut, again = (
        model.generate("a cat", **given, **more) for more in ({}, {"cutouts": 4}, {"cutouts": 4})
    )
    assert cut.tobytes() == again.tobytes() != whole.tobytes()
    other = model.generate("a cat", seed=1, n=2, cutouts=4, **given)
    assert other[0].tobytes() != other[1].tobytes()
    with pytest.raises(ValueError, match="give a clip_guidance_scale"):
        model.generate("a cat", cutouts=4)
    for bad in (0, 257, -1, 2.5, True):
        with pytest.raises(ValueError, match="cutouts"):
            model.generate("a cat", cutouts=bad, clip_guidance_scale=1.0)
