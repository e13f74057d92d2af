"""A kind of condition is one class and its place in the network: here is one more."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Self

import pytest
import torch
from tiny import INPUTS, NET, awake, everything, last, seeded, unit
from torch import Tensor

from training.cost.blank import batch_of
from training.tasks.recipes import PictureRecipe
from unclip import plan
from unclip.data.batches import Batch
from unclip.diffusion.noise import Noise
from unclip.nets.unet import UNet, UNetConfig
from unclip.pipeline.conditions import conditions_of
from unclip.pipeline.model import Model
from unclip.stages import Decoder, DecoderStageConfig, Sampling, load_stage
from unclip.stages import decoder as decoders
from unclip.stages.condition import Condition, Draws, Samples, Values
from unclip.stages.conditions import KINDS
from unclip.stages.stage import Conditions, Stage

NOTHING = -2.0


class LitUNetConfig(UNetConfig):
    lit: bool = False


class LitConfig(DecoderStageConfig):
    net: LitUNetConfig


class LitUNet(UNet):
    """The place in the network: a brightness [N] shifts the answer."""

    def __init__(self, config: LitUNetConfig) -> None:
        super().__init__(config)
        self.light = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, t: Tensor, brightness: Tensor | None = None, **others: Tensor) -> Tensor:
        out = super().forward(x, t, **others)
        return out if brightness is None else out + self.light * brightness[:, None, None, None]


@dataclass(frozen=True)
class Brightness(Condition):
    """brightness [N]: the mean of a picture."""

    rate: float

    names, empty, need = ("brightness",), {"brightness": int(NOTHING)}, "brightness"

    @classmethod
    def of(cls, config: DecoderStageConfig) -> Self | None:
        return cls(0.5) if getattr(config.net, "lit", False) else None

    def inputs(self, values: Values, n: int, stage: Stage) -> Conditions:
        brightness = values.get("brightness")
        return {"brightness": torch.full((n,), NOTHING) if brightness is None else brightness}

    def drop(self, conditions: Conditions, draws: Draws) -> Conditions:
        brightness = conditions["brightness"]
        left_out = draws.left_out("brightness", self.rate, brightness)
        return {"brightness": brightness.masked_fill(left_out, NOTHING)}

    def seen(self, samples: Samples) -> Values:
        return {"brightness": samples.pictures.mean((1, 2, 3))}

    def blank(self, n: int, side: int, device: torch.device) -> Values:
        return {"brightness": torch.zeros(n, device=device)}


@pytest.fixture
def lit(monkeypatch) -> Iterator[Decoder]:
    """A decoder that takes everything that is known, and brightness."""
    monkeypatch.setattr(decoders, "UNet", LitUNet)
    KINDS.append(Brightness)
    net = LitUNetConfig(**NET, **INPUTS, lit=True)
    yield awake(Decoder(LitConfig(net=net, process={"predicts": "v"}, sampling=Sampling(steps=2))))
    KINDS.remove(Brightness)


def test_a_stage_is_told_it_and_told_nothing(lit):
    told = lit.conditions(2, brightness=torch.tensor([0.25, 0.5]))
    assert told["brightness"].tolist() == [0.25, 0.5]
    assert lit.null(told)["brightness"].tolist() == [NOTHING] * 2 == lit.conditions(2)["brightness"].tolist()
    noise = [Noise([0, 1]) for _ in range(2)]
    steps = [lit.sample(one, each) for one, each in zip((told, lit.null(told)), noise, strict=True)]
    assert not torch.allclose(*(last(each).x for each in steps))


def test_it_is_left_out_on_its_own_chance_and_changes_no_draw_before_it(lit):
    n, usual = 4000, awake(Decoder(DecoderStageConfig(net={**NET, **INPUTS}, process={"predicts": "v"})))
    told = everything(usual, n)
    lit.set_statistics(usual.embed_mean, usual.embed_std)
    left = lit.drop({**told, "brightness": torch.zeros(n)}, seeded(3))
    assert left.pop("brightness").eq(NOTHING).float().mean().item() == pytest.approx(0.5, abs=0.03)
    before = usual.drop(told, seeded(3))
    assert left.keys() == before.keys() and all(torch.equal(left[key], before[key]) for key in left)


def test_training_and_what_counts_its_cost_ask_for_it(lit):
    clip = SimpleNamespace(
        encode_image=lambda images: unit(len(images)),
        encode_text=lambda texts: SimpleNamespace(
            trimmed=lambda: SimpleNamespace(
                tokens=torch.ones(len(texts), 3, 5),
                mask=torch.ones(len(texts), 3).bool(),
                embed=unit(len(texts)),
            )
        ),
    )
    batch = Batch(torch.rand(2, 3, 8, 8), ["cat", "dog"], ["a", "b"], torch.tensor([2, 0]))
    told = conditions_of(lit, clip, batch, None)
    assert torch.equal(told["brightness"], batch.image.mean((1, 2, 3))) and told["classes"].tolist() == [2, 0]
    recipe = PictureRecipe.model_construct(
        stage=lit.config, data=SimpleNamespace(size=8, crop=None), train=None, clip=None
    )
    blank = batch_of(recipe, lit, 3)
    assert blank.conditions["brightness"].shape == (3,) and blank.conditions.keys() == told.keys()
    with torch.device("meta"):
        empty = Decoder(lit.config)
    assert plan._call(empty, 2).x0.is_meta


def test_a_pipeline_passes_it_on(lit):
    told = Model.conditions(None, lit, 2, brightness=torch.tensor([0.5, 1.0]))
    assert told["brightness"].tolist() == [0.5, 1.0]


def test_a_checkpoint_holds_it(lit, tmp_path, monkeypatch):
    lit.save(tmp_path / "decoder.safetensors")
    monkeypatch.setattr(Decoder, "config_class", LitConfig)
    again = load_stage(tmp_path / "decoder.safetensors")
    assert again.takes(Brightness) and torch.equal(again.network.light, lit.network.light)


def test_what_no_kind_is_called_is_refused(lit):
    with pytest.raises(TypeError, match="no kind of condition is called colour"):
        lit.conditions(2, colour=torch.zeros(2))
    plain = Decoder(DecoderStageConfig(net=NET, process={"predicts": "v"}))  # it takes none of what is known
    assert plain.conditions(1, brightness=torch.ones(1), image_embed=unit(1)) == {}
