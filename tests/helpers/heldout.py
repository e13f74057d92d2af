"""Five held-out samples, and a pipeline that notes what it is asked to draw of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch

from unclip.options import Options
from unclip.pipeline.request import Wish

NAMES = ["a", "b", "c", "d", "e", "f", "g"]  # more names than five, for chance
OPTIONS = Options(steps=3)
SAMPLES = [
    {"key": str(k), "record": {"name": NAMES[k], "style": "flat", "class": k % 3}, "number": k}
    for k in range(5)
]


class Asked:
    """A pipeline that notes what its steps are asked for, and answers with a word or with grey."""

    takes_prompt, name, classes, device = True, "asked", 3, torch.device("cpu")

    def __init__(self) -> None:
        self.calls: dict[str, Wish] = {}
        self.clip = SimpleNamespace(encode_image=lambda pictures: ("seen", pictures))

    def understood(self, wish: Wish) -> Wish:
        self.calls["understood"] = wish
        return replace(wish, text=("text", wish.texts))

    def decode(self, wish: Wish) -> str:
        self.calls["decoder"] = wish
        return "small"

    def upsample(self, picture: str, wish: Wish) -> torch.Tensor:
        self.calls["upsampler"] = wish
        assert picture == "small"
        return torch.zeros(len(wish), 3, 4, 4)
