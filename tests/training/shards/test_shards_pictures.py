"""What becomes of a picture on its way into a shard."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from shards import encoded, noise, smooth

from training.shards.prepare import Item, Made, Options, prepare


def stored(tmp_path: Path, data: bytes, **options: object) -> Image.Image:
    done = prepare(Item("it", "it", data, b"a"), Options(**options))
    assert isinstance(done, Made), done
    (kind,) = done.files.keys() - {"txt"}
    path = tmp_path / f"it.{kind}"
    path.write_bytes(done.files[kind])
    return Image.open(path)


RED = Image.new("RGB", (6, 4), (200, 10, 20))


MODES = {
    "palette": RED.convert("P", palette=Image.Palette.ADAPTIVE), "grey": RED.convert("L"),
    "one bit": Image.new("1", (6, 4), 1), "transparent": Image.new("RGBA", (6, 4), (200, 10, 20, 255)),
    "grey and alpha": Image.new("LA", (6, 4), (77, 255)), "16 bits": Image.new("I;16", (6, 4), 77 * 257),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_any_mode_comes_out_in_eight_bits(mode, tmp_path):
    image = stored(tmp_path, encoded(MODES[mode]))
    grey = {"grey": (68,) * 3, "one bit": (255,) * 3, "grey and alpha": (77,) * 3, "16 bits": (77,) * 3}
    assert image.format == "PNG" and image.mode in ("RGB", "L")
    assert image.convert("RGB").getpixel((5, 3)) == grey.get(mode, (200, 10, 20))


@pytest.mark.parametrize(
    "kind, mode",
    [
        ("JPEG", "CMYK"),
        ("TIFF", "CMYK"),
        ("TIFF", "LAB"),
        ("TIFF", "F"),
        ("TIFF", "I"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("BMP", "RGB"),
    ],
)
def test_any_format_comes_out(kind, mode, tmp_path):
    grey = Image.new("RGB", (16, 16), (120, 120, 120))
    values = {"LAB": (128, 128, 128), "F": 120.0, "I": 120 * 257}
    grey = grey.convert(mode, palette=Image.Palette.ADAPTIVE)
    image = Image.new(mode, (16, 16), values[mode]) if mode in values else grey
    shown = stored(tmp_path, encoded(image, kind)).convert("RGB").getpixel((3, 3))
    assert max(abs(channel - 120) for channel in shown) < 4


def test_what_is_transparent_lies_on_the_colour_of_choice(tmp_path):
    clear = Image.new("RGBA", (4, 4), (1, 2, 3, 0))
    assert stored(tmp_path, encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert stored(tmp_path, encoded(clear), background="#102030").getpixel((0, 0)) == (16, 32, 48)


def test_pictures_are_turned_upright_and_else_left_as_they_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    plain, turned = (encoded(smooth(40, 20), "JPEG", **more) for more in ({}, {"exif": exif}))
    stored(tmp_path, plain)
    assert (tmp_path / "it.jpg").read_bytes() == plain
    image = stored(tmp_path, turned)
    assert image.size == (20, 40) and image.getexif().get(0x0112, 1) == 1


def test_sizes(tmp_path):
    wide = encoded(noise(40, 20))
    small = stored(tmp_path, wide, size=8)
    assert small.size == (16, 8) and stored(tmp_path, wide, size=20).size == (40, 20)
    assert stored(tmp_path, wide, format="webp").format == "WEBP"
    for options, said in (
        ({"min_size": 21}, "a side of 20 pixels is shorter than 21"),
        ({"max_aspect": 1.9}, "40 x 20 pixels are longer than 1 : 1.9"),
        ({"pixels": 799}, "40 x 20 pixels are more than 799"),
    ):
        assert prepare(Item("it", "it", wide, b"a"), Options(**options)) == said
