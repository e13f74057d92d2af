"""Forty things that people's folders hold: each is used rightly or named, none stops or escapes anything."""

from __future__ import annotations

import itertools
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shards import encoded, noise, smooth
from tiny_models import tiny_clip

from training.data.config import DataConfig
from training.data.source import Source
from training.doctor import look
from training.shards.build import LEFT_OUT, build
from training.shards.prepare import Options
from unclip.data.reading import expand, read_shards

TEXT = "a caption"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes = b"", *more: bytes) -> bytes:
    """A PNG that says it is so large, whatever it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(more)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def exif(orientation: object) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def animated() -> bytes:
    frames = [Image.new("P", (8, 8), index) for index in (1, 2, 3)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)


JPEG = encoded(smooth(40, 30), "JPEG", quality=90)
PNG = encoded(noise(8, 8))
CLEAR = Image.new("P", (8, 8), 0)
BOMB = png(60_000, 60_000)
GREY16 = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8))
# name -> (the picture's file, its caption, what becomes of it: a reason, or its size when it is used)
PICTURES: dict[str, tuple[bytes, bytes | None, object]] = {
    "truncated.jpg": (JPEG[: len(JPEG) // 2], TEXT.encode(), "truncated"),
    "half-a-header.jpg": (JPEG[:11], TEXT.encode(), ""),
    "truncated.png": (encoded(noise(32, 32))[:900], TEXT.encode(), "truncated"),
    "zero-bytes.png": (b"", TEXT.encode(), "an empty file"),
    "only-zeros.jpg": (bytes(5000), TEXT.encode(), "no picture"),
    "words.png": (b"I am a text file, really.\n" * 9, TEXT.encode(), "no picture"),
    "page.jpg": (b"<html><body>404 Not Found</body></html>", TEXT.encode(), "a page of the web"),
    "bomb.png": (BOMB, TEXT.encode(), "pixels"),
    "large-bomb.png": (png(20_000, 8_000), TEXT.encode(), "pixels"),
    "text-bomb.png": (png(8, 8, b"", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 22)))),
                      TEXT.encode(), ""),
    "wrong-sum.png": (PNG[:29] + b"????" + PNG[33:], TEXT.encode(), "no picture"),
    "flipped-bits.png": (PNG[:60] + b"????" + PNG[64:], TEXT.encode(), "checksum"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", TEXT.encode(), "no picture"),
    "vector.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', TEXT.encode(), "draws nothing"),
    "one-pixel.png": (encoded(noise(1, 1)), TEXT.encode(), (1, 1)),
    "strip.png": (png(20_000, 1, b"\0" + bytes(60_000)), TEXT.encode(), (20_000, 1)),
    "cmyk.jpg": (encoded(smooth(16, 16).convert("CMYK"), "JPEG"), TEXT.encode(), (16, 16)),
    "sixteen-bits.png": (encoded(GREY16), TEXT.encode(), (8, 8)),
    "floats.tiff": (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), TEXT.encode(), (8, 8)),
    "palette-clear.png": (encoded(CLEAR, transparency=0), TEXT.encode(), (8, 8)),
    "grey-and-alpha.png": (encoded(Image.new("LA", (8, 8), (9, 0))), TEXT.encode(), (8, 8)),
    "one-bit.bmp": (encoded(Image.new("1", (8, 8), 1), "BMP"), TEXT.encode(), (8, 8)),
    "animated.gif": (animated(), TEXT.encode(), (8, 8)),
    "on-its-side.jpg": (encoded(smooth(40, 30), "JPEG", exif=exif(6)), TEXT.encode(), (30, 40)),
    "broken-exif.jpg": (encoded(smooth(40, 30), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40), TEXT.encode(),
                        (40, 30)),
    "strange-exif.jpg": (encoded(smooth(40, 30), "JPEG", exif=exif(99)), TEXT.encode(), (40, 30)),
    "really-a-jpeg.png": (JPEG, TEXT.encode(), (40, 30)),
    "UPPER.PNG": (PNG, TEXT.encode(), (8, 8)),
    "empty-caption.png": (PNG, b"", "an empty caption"),
    "white-caption.png": (PNG, b" \n\t\r\n", "an empty caption"),
    "no-caption.png": (PNG, None, "a picture without a caption"),
    "long-caption.png": (PNG, b"cat " * 2499 + b"cat!", (8, 8)),
    "latin-caption.png": (PNG, "caf\xe9".encode("latin-1"), "no UTF-8"),
    "binary-caption.png": (PNG, bytes(range(1, 255)), "no UTF-8"),
    "zeros-in-caption.png": (PNG, b"a\0cat\x1b[31m", (8, 8)),
    "emoji \U0001f469\u200d\U0001f680.png": (PNG, "\U0001f469\u200d\U0001f680 an astronaut".encode(), (8, 8)),
    "from-right-to-left.png": (PNG, "\u05d7\u05ea\u05d5\u05dc \u0642\u0637\u0629".encode(), (8, 8)),
    "marked-caption.png": (PNG, b"\xef\xbb\xbfa cat\r\n", (8, 8)),
    "twice.jpg": (JPEG, TEXT.encode(), (40, 30)),
    "twice.png": (PNG, TEXT.encode(), (8, 8)),
    "dots.in.the.name.png": (PNG, TEXT.encode(), (8, 8)),
    "-rf ;$(touch escaped)`.png": (PNG, TEXT.encode(), (8, 8)),
    f"{'long' * 55}.png": (PNG, TEXT.encode(), (8, 8)),
}  # fmt: skip


def folder(top: Path) -> Path:
    """All of these, and what is no file."""
    top.mkdir()
    for name, (data, caption, _) in PICTURES.items():
        (top / name).write_bytes(data)
        if caption is not None:
            (top / name).with_suffix(".txt").write_bytes(caption)
    (top / "dangling.png").symlink_to("nowhere.png")
    (top / "loop").symlink_to(top)
    (top / "a-folder.png").mkdir()
    (top / "alone.txt").write_text("no picture")
    os.mkfifo(top / "pipe.png")
    (top / "pipe.txt").write_text(TEXT)
    (top / "bad-record.png").write_bytes(PNG)
    (top / "bad-record.txt").write_text(TEXT)
    (top / "bad-record.json").write_text("[" * 100_000)
    return top


OTHERS = {
    "dangling.png": "without a caption|No such file",
    "loop": "a link to a folder",
    "alone.txt": "without a picture",
    "pipe.png": "this is a pipe, not a file",
    "bad-record.png": "the record is damaged: its brackets are nested too deep",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, as shards; and all that lies beside them."""
    place = tmp_path_factory.mktemp("hostile")
    return place, build(str(folder(place / "in")), place / "out", Options())


def test_there_are_more_than_forty():
    assert len(PICTURES) + len(OTHERS) >= 45


def test_each_is_used_or_named(made):
    place, result = made
    left = dict(result.left)
    wanted = {name for name, (_, _, fate) in PICTURES.items() if isinstance(fate, str)}
    assert left.keys() == wanted | OTHERS.keys()
    for name in wanted:
        assert PICTURES[name][2].lower() in left[name].lower(), (name, left[name])
    for name, reason in OTHERS.items():
        assert any(part in left[name] for part in reason.split("|")), (name, left[name])
    assert result.counts.total() == len(PICTURES) - len(wanted)
    lines = [json.loads(line) for line in (place / "out" / LEFT_OUT).read_text().splitlines()]
    assert {line["name"]: line["reason"] for line in lines} == left


def test_what_is_used_is_used_rightly(made):
    place, _ = made
    found = {sample["key"]: sample for sample in read_shards(place / "out")}
    sizes = {key.replace("_", ""): sample["image"].size for key, sample in found.items()}
    used = {name: fate for name, (_, _, fate) in PICTURES.items() if not isinstance(fate, str)}
    assert sorted(sizes.values()) == sorted(used.values())
    for name, size in used.items():
        key = Path(name).stem
        if key.replace("-", "").isalnum() and len(key) < 99 and key != "twice":
            assert sizes[key] == size, name

    def corner(key: str, at: int = 7) -> tuple:
        return found[key]["image"].getpixel((at, at))

    assert corner("sixteen-bits") == (255,) * 3 and corner("sixteen-bits", 0) == (0,) * 3
    assert corner("palette-clear") == corner("grey-and-alpha") == corner("one-bit") == (255,) * 3
    assert corner("floats") == (128,) * 3 and corner("animated") == (255, 0, 0)
    plain, cmyk = (np.asarray(image, float) for image in (smooth(16, 16), found["cmyk"]["image"]))
    assert abs(plain - cmyk).mean() < 12
    assert {found["twice"]["image"].size, found["twice-2"]["image"].size} == {(40, 30), (8, 8)}
    assert len(found["long-caption"]["caption"]) == 10_000
    assert found["zeros-in-caption"]["caption"] == "a cat [31m"
    assert found["marked-caption"]["caption"] == "a cat"
    assert found["from-right-to-left"]["caption"] == "\u05d7\u05ea\u05d5\u05dc \u0642\u0637\u0629"
    (emoji,) = (sample["caption"] for key, sample in found.items() if "emoji" in key)
    assert emoji == "\U0001f469\u200d\U0001f680 an astronaut"


def test_nothing_is_written_elsewhere(made):
    place, _ = made
    assert sorted(path.name for path in place.iterdir()) == ["in", "out"]
    assert sorted(path.name for path in (place / "out").iterdir()) == [
        LEFT_OUT,
        "manifest.json",
        "train-000000.tar",
    ]
    assert len(list((place / "in").iterdir())) == len(os.listdir(folder(place / "again")))
    assert not any("escaped" in name for name in os.listdir("."))


def test_they_are_the_same_with_workers_and_train(made, tmp_path):
    place, result = made
    again = build(str(place / "in"), tmp_path / "out", Options(), workers=2)
    assert again.left == result.left
    for path in (place / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    report = look(expand(tmp_path / "out"), tiny_clip())
    assert not report.problems and report.truncated >= 1
    source = Source(DataConfig(shards=[str(tmp_path / "out")], size=8, shuffle=100, random_crop=0.5))
    batches = list(itertools.islice(source.batches(8), 5))
    assert not source.corrupt and all(batch.image.shape == (8, 3, 8, 8) for batch in batches)


# Tars


def test_a_folder_of_nothing_useful_says_why(tmp_path):
    top = tmp_path / "in"
    top.mkdir()
    (top / "words.png").write_text("no picture")
    (top / "words.txt").write_text(TEXT)
    with pytest.raises(ValueError, match="no sample of .* can be used\n  words.png: this is no picture"):
        build(str(top), tmp_path / "out", Options())
    assert os.listdir(tmp_path) == ["in"]
