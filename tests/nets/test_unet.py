"""The U-Net: shapes over the product of options, conditions and their nulls, published sizes."""

from itertools import product

import pytest
import torch
from networks import awake, close
from torch import Tensor, nn

from unclip.nets import TextConfig, TextTransformer, UNet, UNetConfig
from unclip.nets.blocks import SpatialAttention


def unet_config(**options) -> UNetConfig:
    tiny = {
        "image_size": 8,
        "channels": 8,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "head_channels": 4,
    }
    return UNetConfig(**tiny | options)


def conditional(**options) -> UNet:
    inputs = {"image_embed_dim": 6, "text_dim": 5, "text_embed_dim": 7, "classes": 3}
    return awake(UNet(unet_config(context_channels=12, **inputs, **options)))


def inputs(n: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(n, 3, 8, 8, generator=generator),
        "t": torch.arange(n) * 300.0,
        "image_embed": torch.randn(n, 6, generator=generator),
        "has_image": torch.tensor([True, False, True])[:n],
        "text": torch.randn(n, 4, 5, generator=generator),
        "text_mask": torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()[:n],
        "text_embed": torch.randn(n, 7, generator=generator),
        "classes": torch.tensor([2, -1, 0])[:n],
    }


@pytest.mark.parametrize(
    "scale_shift, updown_in_blocks, pixel_unshuffle, context, num_heads",
    list(product([True, False], [True, False], [1, 2], [None, 12], [None, 2])),
)
def test_unet_shapes(scale_shift, updown_in_blocks, pixel_unshuffle, context, num_heads):
    config = unet_config(
        image_size=8 * pixel_unshuffle,
        in_channels=7,
        out_channels=6,
        scale_shift=scale_shift,
        updown_in_blocks=updown_in_blocks,
        pixel_unshuffle=pixel_unshuffle,
        context_channels=context,
        image_embed_dim=6,
        num_heads=num_heads,
    )
    net = UNet(config)
    x = torch.randn(2, 7, config.image_size, config.image_size)
    out = net(x, torch.zeros(2), image_embed=torch.randn(2, 6))
    assert out.shape == (2, 6, *x.shape[2:])
    assert not out.any(), "a new network predicts zero"
    out = awake(net)(x, torch.zeros(2))
    assert out.isfinite().all() and out.any()
    folded = net.to(memory_format=torch.channels_last)(
        x.contiguous(memory_format=torch.channels_last), torch.zeros(2)
    )
    assert close(folded, out, 1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("norm_groups", [2, 32])
def test_unet_trains_under_autocast(channels_last, norm_groups):
    net = conditional(norm_groups=norm_groups).train()
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(**inputs())
    out.float().square().mean().backward()
    want = net(**inputs())
    assert (out.float() - want).abs().max() < 0.1 * want.abs().max()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_without_conditions_it_is_a_plain_ddpm():
    net = awake(UNet(unet_config()))
    assert net(torch.randn(2, 3, 8, 8), torch.zeros(2)).shape == (2, 3, 8, 8)
    assert net(torch.randn(2, 3, 16, 12), torch.zeros(2)).shape == (2, 3, 16, 12)
    for name in ("image_embed", "text", "text_embed", "classes"):
        with pytest.raises(ValueError, match=name):
            net(torch.randn(2, 3, 8, 8), torch.zeros(2), **{name: torch.zeros(2, 4, 5)})


def test_no_attention_anywhere():
    net = UNet(unet_config(attention_resolutions=(), middle_attention=False))
    assert not any(isinstance(module, SpatialAttention) for module in net.modules())


def test_text_behind_the_mask_changes_nothing():
    net, given = conditional(), inputs()
    out = net(**given)
    padding = ~given["text_mask"][..., None]
    other = given | {"text": torch.where(padding, 9.0, given["text"])}
    assert close(net(**other), out)
    other = given | {"text": torch.where(padding, given["text"], -given["text"])}
    changed = (net(**other) - out).abs().flatten(1).amax(1)
    assert changed[0] > 1e-3 and changed[1] < 1e-5 and changed[2] > 1e-3


def test_an_empty_text_is_no_text():
    net, given = conditional(), inputs()
    empty = net(**given | {"text_mask": torch.zeros(3, 4).bool()})
    none = net(**given | {"text": None, "text_mask": None})
    assert empty.isfinite().all() and close(empty, none)


def test_without_image_the_null_embedding_is_used():
    net, given = conditional(), inputs()
    out = net(**given)
    other = net(**given | {"image_embed": -given["image_embed"]})
    assert close(out[1], other[1]) and not close(out[0], other[0])
    nowhere = net(**given | {"has_image": torch.zeros(3).bool()})
    assert close(nowhere, net(**given | {"image_embed": None, "has_image": None}))
    everywhere = net(**given | {"has_image": torch.ones(3).bool()})
    assert close(everywhere, net(**given | {"has_image": None}))


def test_class_minus_one_is_no_class():
    net, given = conditional(), inputs()
    out, none = net(**given), net(**given | {"classes": None})
    assert close(out[1], none[1]) and not close(out[0], none[0]) and not close(out[2], none[2])


def test_a_picture_does_not_see_its_batch():
    net, given = conditional(), inputs()
    out = net(**given)
    for i in range(3):
        alone = net(**{name: value[i : i + 1] for name, value in given.items()})
        assert close(alone, out[i : i + 1], 1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 9}, "no multiple of 2"),
        ({"image_size": 18, "pixel_unshuffle": 4}, "no multiple of 8"),
        ({"attention_resolutions": (3,)}, "do not occur"),
        ({"text_dim": 5}, "needs context_channels"),
        ({"text_dim": 5, "context_channels": 6, "text_project": False}, "equal to context"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        unet_config(**options)


ADM = {"out_channels": 6, "attention_resolutions": (32, 16, 8)}
IDDPM = {"out_channels": 6, "attention_resolutions": (16, 8), "num_heads": 4}
PUBLISHED = {
    "ADM 64": (
        295_904_454,
        {"image_size": 64, "channels": 192, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 3}
        | {"classes": 1000, **ADM},
    ),
    "ADM 128": (
        421_529_606,
        {"image_size": 128, "channels": 256, "channel_mult": (1, 1, 2, 3, 4), "num_res_blocks": 2}
        | {"classes": 1000, "num_heads": 4, **ADM},
    ),
    "ADM 256 unconditional": (
        552_814_086,
        {"image_size": 256, "channels": 256, "channel_mult": (1, 1, 2, 2, 4, 4)}
        | {"num_res_blocks": 2, **ADM},
    ),
    "ADM 512": (
        558_997_638,
        {"image_size": 512, "channels": 256, "channel_mult": (0.5, 1, 1, 2, 2, 4, 4)}
        | {"num_res_blocks": 2, "classes": 1000, **ADM},
    ),
    "improved DDPM CIFAR-10": (
        52_546_438,
        {"image_size": 32, "channels": 128, "channel_mult": (1, 2, 2, 2), "num_res_blocks": 3}
        | {"updown_in_blocks": False, **IDDPM},
    ),
    "Karlo decoder": (  # with what its text projection holds: 7,878,400 more
        885_439_686,
        {"image_size": 64, "channels": 320, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 3}
        | {"context_channels": 1536, **ADM},
    ),
    "Karlo upsampler": (
        691_579_523,
        {"image_size": 256, "channels": 320, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 3}
        | {"in_channels": 6, "scale_shift": False, "middle_attention": False},
    ),
}


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_of_published_models(name):
    count, options = PUBLISHED[name]
    with torch.device("meta"):
        assert parameters(UNet(UNetConfig(**options))) == count


def test_parameter_count_of_glide():
    with torch.device("meta"):
        unet = UNet(
            UNetConfig(
                image_size=64,
                channels=192,
                channel_mult=(1, 2, 3, 4),
                num_res_blocks=3,
                context_channels=512,
                text_dim=512,
                text_project=False,
                text_embed_dim=512,
                **ADM,
            )
        )
        text = TextTransformer(TextConfig(vocab_size=50257, length=128, width=512, layers=16, heads=8))
    assert parameters(unet) + parameters(text) == 385_030_726


def test_refined_pixels_see_across_the_seams_of_patches():
    """With the same weights before it, the last part alone changes the picture, by its surroundings."""
    net = awake(UNet(unet_config(pixel_unshuffle=2, image_size=16, refine=5)))
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)), torch.tensor([3.0, 9.0])
    assert net(x, t).shape == (2, 3, 16, 16)
    patches = torch.randn(1, 5, 16, 16, generator=torch.Generator().manual_seed(3), requires_grad=True)
    seen = x[:1].clone().requires_grad_(True)
    net.refine(patches, seen)[0, :, 7, 7].sum().backward()  # two convolutions reach two pixels
    for gradient in (patches.grad, seen.grad):
        reached = gradient.abs().sum(1)[0].nonzero()
        assert reached.min(0).values.tolist() == [5, 5]  # its own patch is 6 to 7
        assert reached.max(0).values.tolist() == [9, 9]
    fresh = UNet(unet_config(pixel_unshuffle=2, image_size=16, refine=5))
    assert not fresh(x, t).any()  # a new network says nothing yet, with the part as without
    with pytest.raises(ValueError, match="refine\n.*greater than or equal to 1"):
        unet_config(refine=0)
