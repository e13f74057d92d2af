"""The classifier of noised pictures, against the public code's: names, sizes, and what it computes.

UNCLIP_FIXTURES may name another folder with files of the same form.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from unclip.nets import ClassifierConfig, NoisedClassifier

FIXTURES = Path(os.environ.get("UNCLIP_FIXTURES", Path(__file__).parent / "fixtures"))
NAMES = {
    "time_embed.": "time.",
    "input_blocks.": "encoder.",
    "middle_block.": "middle.",
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "emb",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
    "proj_out": "out",
    "out.0": "norm",
    "out.2.positional_embedding": "pool.position",
    "out.2.qkv_proj": "pool.qkv",
    "out.2.c_proj": "pool.out",
}


def ours(name: str) -> str:
    """A parameter's name in the public code -> ours."""
    for theirs, mine in NAMES.items():
        if name.startswith("out.") == theirs.startswith("out."):
            name = name.replace(theirs, mine)
    return name


def flat(shape: list[int] | torch.Size) -> list[int]:
    """Their 1x1 convolutions over a sequence are linear layers here."""
    return [*shape][:-1] if len(shape) == 3 else [*shape]


def tiny() -> tuple[NoisedClassifier, dict[str, Tensor]]:
    with safe_open(FIXTURES / "adm" / "classifier.safetensors", "pt") as file:
        theirs = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    net = NoisedClassifier(ClassifierConfig(
        image_size=theirs["image_size"], channels=theirs["model_channels"],
        channel_mult=theirs["channel_mult"], num_res_blocks=theirs["num_res_blocks"],
        attention_resolutions=[theirs["image_size"] // k for k in theirs["attention_resolutions"]],
        head_channels=theirs["num_head_channels"], classes=theirs["out_channels"]))  # fmt: skip
    weights = {ours(key.removeprefix("weights.")): value.float().reshape(flat(value.shape))
               for key, value in tensors.items() if key.startswith("weights.")}
    net.load_state_dict(weights, strict=True)
    return net.eval(), tensors


def test_it_computes_what_the_public_code_does():
    net, tensors = tiny()
    out = net(tensors["inputs.x"], tensors["inputs.timesteps"])
    torch.testing.assert_close(out, tensors["outputs.out"], rtol=1e-5, atol=1e-5)


def test_every_input_has_a_say():
    net, tensors = tiny()
    x, t = tensors["inputs.x"], tensors["inputs.timesteps"]
    out = net(x, t)
    assert not torch.allclose(net(x, t + 100), out, atol=1e-3)
    assert not torch.allclose(net(x.flip(3), t), out, atol=1e-3)  # it knows places
    torch.testing.assert_close(net(x[1:], t[1:]), out[1:])


SIZES = {
    "adm-64-classifier": {"channel_mult": (1, 2, 3, 4)},
    "adm-256-classifier": {"channel_mult": (1, 1, 2, 2, 4, 4)},
}


@pytest.mark.parametrize("name", SIZES)
def test_the_published_ones_have_these_parameters(name):
    manifest = json.loads((FIXTURES / "manifests" / f"{name}.json").read_text())
    theirs = manifest["config"]
    grids = [int(side) for side in theirs["classifier_attention_resolutions"].split(",")]
    with torch.device("meta"):
        net = NoisedClassifier(ClassifierConfig(
            image_size=theirs["image_size"], channels=theirs["classifier_width"],
            num_res_blocks=theirs["classifier_depth"], attention_resolutions=grids,
            scale_shift=theirs["classifier_use_scale_shift_norm"], classes=1000,
            updown_in_blocks=theirs["classifier_resblock_updown"], **SIZES[name]))  # fmt: skip
    assert sum(parameter.numel() for parameter in net.parameters()) == manifest["parameters"]
    shapes = {ours(key): flat(shape) for key, shape in manifest["tensors"].items()}
    assert {key: [*value.shape] for key, value in net.state_dict().items()} == shapes


def test_pixels_may_be_folded_and_heads_must_fit():
    config = {"image_size": 16, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "classes": 3}
    net = NoisedClassifier(ClassifierConfig(pixel_unshuffle=2, **config))
    assert net(torch.randn(2, 3, 16, 16), torch.zeros(2)).shape == (2, 3)
    with pytest.raises(ValueError, match="5 attention heads do not divide 16 channels"):
        NoisedClassifier(ClassifierConfig(num_heads=5, **config, middle_attention=False))
    with pytest.raises(ValueError, match="classes"):
        ClassifierConfig(**{**config, "classes": 1})
