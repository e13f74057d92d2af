"""Five held-out samples, and a pipeline that notes what it is asked to draw of them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from unclip.options import Options

NAMES = ["a", "b", "c", "d", "e", "f", "g"]  # more names than five, for chance
OPTIONS = Options(steps=3)
SAMPLES = [
    {"key": str(k), "record": {"name": NAMES[k], "style": "flat", "class": k % 3}, "number": k}
    for k in range(5)
]


class Asked:
    """A pipeline that notes what its steps are asked for, and answers with a word or with grey."""

    takes_prompt, name, classes, device = True, "asked", 3, torch.device("cpu")

    def __init__(self, prior: object = "a prior") -> None:
        self.prior, self.calls = prior, {}
        self.clip = SimpleNamespace(encode_image=lambda pictures: ("seen", pictures))

    def encode_text(self, captions):
        return ("text", captions)

    def sample_prior(self, text, seeds, options):
        self.calls["prior"] = text, seeds, options
        return "embedded"

    def decode(self, seeds, embed, text, options, classes):
        self.calls["decoder"] = seeds, embed, text, options, classes
        return "small"

    def upsample(self, picture, seeds, embed, text, options, classes):
        self.calls["upsampler"] = seeds, embed, text, options, classes
        assert picture == "small"
        return torch.zeros(len(seeds), 3, 4, 4)
