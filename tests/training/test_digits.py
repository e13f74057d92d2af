"""The digits' shards: real, whole, held out by rule, and the same bytes every time."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import digits
from unclip.data.reading import expand, read_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    digits.main([str(folder)])
    return folder


def samples(folder: Path, split: str) -> list[dict]:
    return list(read_shards(expand(f"{folder}/{split}-*.tar")))


def test_every_digit_is_there_once(shards):
    train, heldout = samples(shards, "train"), samples(shards, "heldout")
    found = {sample["key"]: sample for sample in train + heldout}
    assert (len(found), len(train), len(heldout)) == (1797, 1705, 92)
    images, classes = digits.digits()
    for index in (0, 1, 8, 1000, 1796):
        sample = found[f"digits--{index:04d}"]
        pixels = np.asarray(sample["image"])
        assert pixels.shape == (8, 8, 3) and (pixels == pixels[..., :1]).all()
        assert (pixels[..., 0] == np.round(images[index] * 255 / 16)).all()
        assert sample["record"] == {"class": classes[index], "name": digits.NAMES[classes[index]]}
    assert max(np.asarray(sample["image"]).max() for sample in train) == 255
    assert Counter(sample["caption"] for sample in found.values())["an eight"] == (classes == 8).sum()
    assert found["digits--0007"]["caption"] == "a seven"


def test_the_rule_and_not_the_order_says_what_is_held_out(shards):
    keys = {sample["key"] for sample in samples(shards, "heldout")}
    assert keys == {f"digits--{index:04d}" for index in range(1797) if digits.held_out(index)}
    assert digits.held_out(int(min(keys)[-4:])) and not digits.held_out(0)
    assert len({sample["record"]["class"] for sample in samples(shards, "heldout")}) == 10


def test_same_input_same_bytes(shards, tmp_path):
    digits.build(tmp_path)
    first, again = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (shards, tmp_path)
    )
    assert {"train", "heldout"} == {name.partition("-")[0] for name in first if name.endswith(".tar")}
    assert first == again


def test_larger_ones_are_the_same_digits_enlarged(shards, tmp_path):
    digits.build(tmp_path, 16)
    small, large = (next(iter(samples(folder, "heldout"))) for folder in (shards, tmp_path))
    assert large["image"].size == (16, 16) and large["key"] == small["key"]
    pixels = digits.digits()[0][int(small["key"][-4:])] * (255 / 16)
    enlarged = Image.fromarray(pixels.round().astype(np.uint8)).resize((16, 16), Image.Resampling.BICUBIC)
    assert (np.asarray(large["image"])[..., 0] == np.asarray(enlarged)).all()
    assert abs(np.asarray(large["image"].resize((8, 8))).astype(int) - np.asarray(small["image"])).mean() < 16


@pytest.mark.parametrize("size", [7, 65])
def test_senseless_sizes_are_refused(size, tmp_path):
    with pytest.raises(ValueError, match="between 8 and 64"):
        digits.build(tmp_path, size)
    assert not list(tmp_path.iterdir())


def test_without_scikit_learn_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"unclip\[ladder\]"):
        digits.build(tmp_path)
