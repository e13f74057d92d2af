"""What is made of a picture and its captions for a batch."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageFilter, ImageOps
from shards import encoded, noise, sample, smooth, uneven
from sources import first, source

from training.data.config import DataConfig
from unclip.config import ConfigError, parse_config
from unclip.data.images import to_tensor
from unclip.data.pictures import open_picture, region, square
from unclip.data.writing import ShardWriter


def one(tmp_path: Path, files: dict[str, bytes], **config: object) -> object:
    with ShardWriter(tmp_path, "one") as writer:
        writer.write("one", files)
    return first(source(writer.paths, **config), 1, 1)[0]


def test_of_several_captions_each_is_drawn_and_the_first_is_the_plain_one(tmp_path):
    captions = ["a cat", "a small cat", "an animal"]
    paths = uneven(tmp_path, [1], captions=captions)
    drawn = Counter(batch.caption[0] for batch in first(source(paths), 1, 60))
    assert drawn.keys() == {"picture 0", *captions} and min(drawn.values()) > 5
    assert source(paths, heldout=[str(paths[0])]).heldout(1).caption == ["picture 0"]


@pytest.mark.parametrize("record, known", [({"caption": "a"}, ["a"]), ({"captions": ["b", "c"]}, ["b", "c"])])
def test_a_caption_may_be_in_the_record(tmp_path, record, known):
    files = {"png": sample(1)["png"], "json": json.dumps(record).encode()}
    assert one(tmp_path, files).caption[0] in known


def test_what_is_transparent_shows_the_background(tmp_path):
    files = {"png": encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 0))), "txt": b"nothing"}
    assert bool((one(tmp_path, files).image == 1).all())
    red = one(tmp_path, files, background="#ff0000").image
    assert red[0, :, 0, 0].tolist() == [1, -1, -1]
    with pytest.raises(ConfigError, match="'skyblu' is no colour; write"):
        parse_config(DataConfig, {"shards": [], "size": 8, "background": "skyblu"})


def test_pictures_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image = smooth(64, 64)
    files = {"jpg": encoded(image, "JPEG", quality=95, exif=exif), "txt": b"turned"}
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(files["jpg"])))
    wanted = wanted.resize((8, 8), Image.Resampling.LANCZOS)
    assert (one(tmp_path, files).image[0] - to_tensor(wanted)).abs().max() < 4 / 127.5


def test_random_crops_are_squares_from_anywhere(tmp_path):
    wide = Image.new("RGB", (60, 20))
    for x in range(60):
        wide.paste((4 * x, 0, 0), (x, 0, x + 1, 20))
    with ShardWriter(tmp_path, "wide") as writer:
        writer.write("wide", {"png": encoded(wide), "txt": b"wide"})
    (centre,) = first(source(writer.paths), 1, 1)
    batches = first(source(writer.paths, random_crop=0.5), 1, 200)
    reds = torch.stack([(batch.image[0, 0].mean(0) + 1) * 127.5 for batch in batches])  # [200, 8]
    width = (reds[:, -1] - reds[:, 0]) / 4 * 8 / 7  # pixels of the original
    left = reds[:, 0] / 4 - width / 16
    assert 9 < width.min() < 11 and 18.5 < width.max() < 21
    assert left.min() < 3 and (left + width).max() > 57
    assert abs((centre.image[0, 0].mean() + 1) * 127.5 / 4 - 29.5) < 0.5


@pytest.mark.parametrize(
    "size, shape", [(8, (400, 300)), (16, (401, 333)), (32, (640, 480)), (90, (300, 300))]
)
def test_a_jpeg_that_is_shrunk_while_it_is_decoded_differs_by_no_more_than_rounding(size, shape):
    data = encoded(smooth(*shape), "JPEG", quality=92)
    whole = open_picture(data)
    least = open_picture(data, least=3 * size)
    assert min(least.size) >= 3 * size and (least.size != whole.size) == (min(shape) >= 6 * size)
    exact, cheap = (to_tensor(square(image, size)) for image in (whole, least))
    difference = (exact - cheap).abs() * 127.5
    assert difference.mean() < 0.8 and difference.max() < 5


@pytest.mark.parametrize("torchs", [True, False])
@pytest.mark.parametrize("size, shape, side", [(24, (97, 64), 1), (24, (64, 97), 0.8), (40, (60, 50), 0.5)])
def test_a_square_is_lanczos_of_its_region_but_for_rounding(size, shape, side, torchs, monkeypatch):
    """Whether PyTorch has that filter or PIL's is taken, to smaller and to larger pictures."""
    image, place = noise(*shape), (0.7, 0.3)
    left, top, length, _ = region(image, size, side, place)
    assert abs(left - 0.7 * (shape[0] - length)) < 3 and abs(top - 0.3 * (shape[1] - length)) < 3
    part = image.crop((left, top, left + length, top + length))
    if not torchs:
        monkeypatch.delattr("torch._C._nn._upsample_lanczos2d_aa", raising=False)
    found, wanted = square(image, size, side, place), part.resize((size, size), Image.Resampling.LANCZOS)
    assert max(most for _, most in ImageChops.difference(found, wanted).getextrema()) <= 1


@pytest.mark.parametrize("size, shape", [(64, (512, 512)), (208, (641, 427)), (96, (500, 831))])
def test_a_jpeg_is_decoded_at_no_more_than_it_needs_and_nearer_to_lanczos_than_boxes(size, shape):
    """Than halving by boxes and then a bicubic filter, as ADM's public loader shrinks pictures."""
    data = encoded(
        smooth(*shape).filter(ImageFilter.Kernel((3, 3), [-1, -2, 1, 2, 9, -3, 2, 1, -2], 7)), "JPEG"
    )
    whole, least = open_picture(data), open_picture(data, least=size)
    left, top, length, _ = region(whole, size)
    small = region(least, size)
    assert [one * small[3] for one in small[:3]] == [left, top, length] and size <= small[2] < 2 * size
    boxes = whole.crop((left, top, left + length, top + length))
    exact = to_tensor(boxes.resize((size, size), Image.Resampling.LANCZOS))
    while boxes.width >= 2 * size:
        boxes = boxes.resize((boxes.width // 2,) * 2, Image.Resampling.BOX)
    ours, theirs = (
        (to_tensor(made) - exact).square().mean()
        for made in (square(least, size), boxes.resize((size, size), Image.Resampling.BICUBIC))
    )
    assert ours < theirs and -10 * torch.log10(ours / 4) > 35
