"""The CLIP of noised pictures: its parts, its gradient, its tokens and its file. The public one's outputs:
test_convert_glide.py."""

import pytest
import torch
from torch import Tensor

from unclip.checkpoint import CheckpointError, read_header
from unclip.diffusion import guidance
from unclip.guides.noised_clip import NoisedClip, NoisedClipStageConfig, load_noised_clip
from unclip.nets.noised_clip import NoisedClipConfig, NoisedClipNet

SMALL = {
    "embed_dim": 6,
    "image": {"width": 16, "layers": 2, "heads": 2},
    "image_size": 8,
    "patch_size": 4,
    "timesteps": 50,
    "text": {"width": 12, "layers": 2, "heads": 3},
    "vocab_size": 49408,
    "length": 9,
}


@pytest.fixture
def clip() -> NoisedClip:
    torch.manual_seed(0)
    return NoisedClip(NoisedClipStageConfig(net=NoisedClipConfig(**SMALL))).eval().requires_grad_(False)


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 50])


def test_embeddings_have_length_one_and_everything_has_a_say(clip):
    x, t = inputs()
    image, text = clip.encode_image(x, t), clip.encode_text(["a fish", "a dog"])
    for embed in (image, text):
        torch.testing.assert_close(embed.norm(dim=1), torch.ones(2))
    assert not torch.allclose(clip.encode_image(x, t.flip(0)), image, atol=1e-3)
    assert not torch.allclose(clip.encode_image(x.flip(3), t), image, atol=1e-3)  # it knows places
    assert not torch.allclose(text[0], text[1], atol=1e-3)


def test_a_text_is_read_at_its_end_and_not_beyond():
    net = NoisedClipNet(NoisedClipConfig(**SMALL))
    tokens, lengths = torch.randint(1, 99, (2, 9)), torch.tensor([4, 9])
    embed = net.encode_text(tokens, lengths)
    tokens[0, 4:] = 7
    torch.testing.assert_close(net.encode_text(tokens, lengths), embed)  # causal
    tokens[:, 3] += 1
    assert not torch.allclose(net.encode_text(tokens, lengths), embed, atol=1e-4)


def test_tokens_are_clips_between_two_marks(clip):
    ids, lengths = clip.tokenize(["a goldfish", "", "A Goldfish " * 20])
    assert lengths.tolist() == [4, 2, 9]
    assert ids[0].tolist() == [49406, 320, 40293, 49407, 0, 0, 0, 0, 0]
    assert ids[1].tolist() == [49406, 49407] + [0] * 7
    assert ids[2, -1] == 49407 and ids[2, 1] == 320  # cut, and still ended


def test_it_climbs_the_logit_of_each_text(clip):
    x, t = inputs()
    x, t = x.double(), t
    clip.double()
    texts = ["a fish", "a dog"]
    wanted = clip.network.text(*clip.tokenize(texts))
    wanted = wanted / wanted.norm(dim=1, keepdim=True)
    gradient = guidance.gradient_of(clip.climb(texts, scale=2.5), x, t, x)
    step = torch.zeros_like(x)
    step[:, 1, 3, 5] = 1e-5

    def logits(x: Tensor) -> Tensor:
        image = clip.network.image(x, t - 1)
        return 100 * (image / image.norm(dim=1, keepdim=True) * wanted).sum(1)

    slope = 2.5 * (logits(x + step) - logits(x - step)) / 2e-5
    torch.testing.assert_close(gradient[:, 1, 3, 5], slope, rtol=1e-3, atol=1e-5)


@pytest.mark.bitwise
def test_its_file_says_everything(clip, tmp_path):
    clip.facts = {"source": "somewhere"}
    clip.save(tmp_path / "guide.safetensors")
    again = load_noised_clip(tmp_path / "guide.safetensors")
    assert again.config == clip.config and again.facts == clip.facts and not again.training
    x, t = inputs()
    torch.testing.assert_close(again.encode_image(x, t), clip.encode_image(x, t), rtol=0, atol=0)
    assert read_header(tmp_path / "guide.safetensors")["kind"] == "noised_clip"
    half = load_noised_clip(tmp_path / "guide.safetensors", dtype=torch.bfloat16)
    assert half.network.image.patches.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close = half.encode_image(x, t)
        half.climb(["a fish", "a dog"])(x, t, x)
    torch.testing.assert_close(close, clip.encode_image(x, t), rtol=0, atol=0.05)


def test_what_does_not_fit_is_refused(clip, tmp_path):
    with pytest.raises(ValueError, match="patches of 3 pixels do not divide 8"):
        NoisedClipConfig(**SMALL | {"patch_size": 3})
    with pytest.raises(ValueError, match="5 heads do not divide a width of 12"):
        NoisedClipConfig(**SMALL | {"text": {"width": 12, "layers": 1, "heads": 5}})
    with pytest.raises(ValueError, match="this CLIP takes 8"):
        clip.encode_image(torch.zeros(1, 3, 16, 16), torch.ones(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="5 tokens a text, not 9"):
        clip.network.encode_text(torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_noised_clip(tmp_path / "absent.safetensors")
