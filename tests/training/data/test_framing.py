"""Which way up, and which part: EXIF's eight turns, mirrors and turns by chance, windows and squares."""

from __future__ import annotations

import io
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from shards import encoded, noise, smooth

from training.data import reader
from training.data.config import DataConfig
from training.data.framing import framing, turned
from training.data.reader import Example, Reader
from training.streams import Purpose, seed_of
from unclip.data.batches import window
from unclip.data.pictures import FULL, open_picture, size_of, square

# How a picture that is stored under each of EXIF's orientations is to be seen.
SEEN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    8: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
}


def stored(image: Image.Image, orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


@pytest.mark.parametrize("orientation", SEEN)
def test_a_picture_that_is_not_square_stands_upright(orientation):
    """And is as wide as it is seen, though it was stored lying."""
    picture = noise(12, 7)
    wanted = SEEN[orientation](np.asarray(picture))
    found = open_picture(stored(picture, orientation))
    assert np.array_equal(np.asarray(found), wanted)
    assert found.size == found.info[FULL] == ((12, 7) if orientation < 5 else (7, 12))


@pytest.mark.parametrize("orientation", SEEN)
def test_a_jpeg_that_is_decoded_smaller_stands_upright_too(orientation):
    """The size in the file is that of the upright picture, and so is a square from its right or lower end."""
    data = stored(smooth(400, 304), orientation, "JPEG")
    whole, small = open_picture(data), open_picture(data, least=30)
    assert small.info[FULL] == whole.size == ((400, 304) if orientation < 5 else (304, 400))
    assert size_of(Image.open(io.BytesIO(data))) == whole.size
    assert min(small.size) == 38 and (small.width > small.height) == (orientation < 5)
    ends = [square(image, 8, 0.5, place) for image in (whole, small) for place in ((1.0, 0.0), (0.0, 1.0))]
    right, low, small_right, small_low = (np.asarray(end).astype(int) for end in ends)
    assert abs(right - small_right).mean() < 2 and abs(low - small_low).mean() < 2
    assert abs(right - low).mean() > 8


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_there_is_not_turns_nothing(orientation):
    picture = noise(12, 7)
    assert np.array_equal(np.asarray(open_picture(stored(picture, orientation))), np.asarray(picture))


# By chance


PICTURE = torch.arange(3 * 4 * 4).view(3, 4, 4)
TURNS = {
    (mirrored, turns): (PICTURE.flip(2) if mirrored else PICTURE).rot90(turns, (1, 2))
    for mirrored in (False, True)
    for turns in range(4)
}


def turns_of(make) -> Counter:
    """How often each of the eight symmetries comes, of 400 draws."""
    found: Counter = Counter()
    for number in range(400):
        image = make(number)
        (which,) = [turn for turn, wanted in TURNS.items() if torch.equal(image, wanted)]
        found[which] += 1
    return found


@pytest.mark.parametrize("flip, rotate, expected", [
    (0.0, 0.0, {(False, 0): 1.0}), (1.0, 0.0, {(True, 0): 1.0}),
    (0.25, 0.0, {(False, 0): 0.75, (True, 0): 0.25}),
    (0.0, 0.3, {(False, 0): 0.7, (False, 1): 0.1, (False, 2): 0.1, (False, 3): 0.1}),
    (0.5, 0.75, dict.fromkeys(TURNS, 1 / 8)),
])  # fmt: skip
def test_mirrors_and_turns_come_as_often_as_asked(flip, rotate, expected):
    rng = Random(0)
    found = turns_of(lambda number: turned(PICTURE, flip, rotate, rng))
    assert found.keys() == expected.keys()
    assert all(abs(found[turn] / 400 - share) < 0.08 for turn, share in expected.items())


def test_windows_lie_anywhere():
    rng = Random(0)
    corners = {tuple(window(PICTURE, 2, rng)[0, 0].tolist()) for _ in range(200)}
    assert corners == {(4 * y + x, 4 * y + x + 1) for y in range(3) for x in range(3)}
    assert torch.equal(window(PICTURE, None, rng), PICTURE) and torch.equal(window(PICTURE, 4, rng), PICTURE)


def test_squares_lie_anywhere_and_are_of_any_size():
    rng = Random(0)
    assert framing(None, rng) == (1.0, (0.5, 0.5))
    sides, places = zip(*(framing(0.5, rng) for _ in range(200)), strict=True)
    for values, low in ((sides, 0.5), *((column, 0.0) for column in zip(*places, strict=True))):
        assert low <= min(values) < low + 0.05 and 0.95 < max(values) <= 1.0


# What a reader makes of a sample


def example(number: int = 0, seed: int = 0, image: Image.Image | None = None, **config: object) -> Example:
    """Of a picture of 4 x 4 pixels, unless told otherwise."""
    shown = Image.fromarray(PICTURE.permute(1, 2, 0).byte().numpy()) if image is None else image
    sample = {"image": shown, "captions": ["a", "b", "c"], "record": {"class": 5}, "key": "k", "shard": "s"}
    return Reader(DataConfig(**{"shards": [], "size": 4, **config}), seed)(sample, number)


def test_a_reader_mirrors_by_flip_and_turns_by_rotate():
    assert turns_of(lambda number: example(number, flip=1.0).image).keys() == {(True, 0)}
    assert turns_of(lambda number: example(number, rotate=1.0).image).keys() == {
        (False, 1),
        (False, 2),
        (False, 3),
    }
    both = turns_of(lambda number: example(number, flip=0.5, rotate=0.75).image)
    assert both.keys() == TURNS.keys() and min(both.values()) > 20
    assert turns_of(lambda number: example(number).image).keys() == {(False, 0)}


def test_a_reader_cuts_windows_and_draws_captions():
    made = [example(number, crop=2) for number in range(200)]
    assert len({tuple(one.image[0, 0].tolist()) for one in made}) == 9
    assert Counter(one.caption for one in made).keys() == {"a", "b", "c"}
    assert {(one.key, one.label, one.image.shape) for one in made} == {("k", 5, (3, 2, 2))}


@pytest.mark.parametrize("config", [{"flip": 0.5, "rotate": 0.75}, {"crop": 2}, {"random_crop": 0.5}])
def test_chance_depends_on_seed_and_number(config):
    wide = noise(12, 9)
    made = {
        (seed, number): example(number, seed, wide, size=4, **config).image
        for seed in (0, 1)
        for number in range(12)
    }
    for seed in (0, 1):
        assert len({tuple(made[seed, number].flatten().tolist()) for number in range(12)}) > 3
    assert any(not torch.equal(made[0, number], made[1, number]) for number in range(12))
    drawn = Random(seed_of(1, Purpose.AUGMENT, 7)).randrange(3)
    assert example(7, 1).caption == "abc"[drawn]
    assert torch.equal(made[1, 7], example(7, 1, wide, size=4, **config).image)


def test_squares_of_a_reader_lie_anywhere_below_and_beside():
    """The colours of a wide picture tell from where; those of a high one too."""
    for size, channel in (((60, 20), 0), ((20, 60), 1)):
        y, x = np.mgrid[: size[1], : size[0]]
        ramp = Image.fromarray(np.stack([4 * x, 4 * y, 0 * x], -1).astype(np.uint8))
        means = [
            example(number, image=ramp, random_crop=0.9).image[channel].float().mean().item() / 4
            for number in range(100)
        ]
        assert min(means) < 14 and max(means) > 46


@pytest.mark.parametrize("random_crop, fraction", [(None, 8), (0.25, 4)])
def test_a_jpeg_is_decoded_as_large_as_its_square_needs(random_crop, fraction, monkeypatch):
    """No smaller than what is made of it, and for a smaller square of it larger."""
    opened: list[Image.Image] = []

    def decoded(*args: object, **how: object) -> Image.Image:
        opened.append(open_picture(*args, **how))
        return opened[-1]

    monkeypatch.setattr(reader, "open_picture", decoded)
    sample = {"__key__": "k", "__url__": "s", "jpg": encoded(smooth(128, 128), "JPEG"), "txt": b"a"}
    for number in range(8):
        Reader(DataConfig(shards=[], size=8, random_crop=random_crop), 0)(sample, number)
    assert min(image.width for image in opened) >= 8
    assert max(image.width for image in opened) == 128 // fraction


def test_a_reader_shows_the_background_behind_what_is_transparent():
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    assert example(image=clear, background="#ff0000").image[:, 0, 0].tolist() == [255, 0, 0]
