"""Pictures of every format: read where that can be, else named by file and format; drawings see nothing."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from shards import encoded, noise
from tiny_models import tiny_clip

from training.data.config import DataConfig
from training.data.source import Source
from training.doctor import as_json, look
from training.shards.build import build
from training.shards.prepare import Options
from unclip.data import formats
from unclip.data.formats import ENDINGS, PictureError, readable, unread
from unclip.data.pictures import FULL, flatten, open_picture
from unclip.data.reading import read_shards

pytestmark = pytest.mark.attack
SPACE = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
RED = '<rect width="{}" height="{}" fill="red"/>'


def svg(body: str, facts: str = 'width="20" height="10"') -> bytes:
    return f"<svg {SPACE} {facts}>{body}</svg>".encode()


@pytest.fixture
def drawings():
    pytest.importorskip("resvg_py")


@pytest.mark.parametrize("facts, least, size", [
    ('width="20" height="10"', None, (1024, 512)),
    ('width="20" height="10"', 24, (48, 24)),
    ('width="20mm" height="10mm"', 8, (16, 8)),
    ('viewBox="0 0 3 6"', 10, (10, 20)),
    ('viewBox="-5,-5 40 40" width="100%"', 16, (16, 16)),
    ("", 16, (16, 16)),
])  # fmt: skip
def test_a_drawing_is_made_as_large_as_it_is_needed(drawings, facts, least, size):
    image = open_picture(svg(RED.format(90, 90), facts), least)
    assert image.size == image.info[FULL] == size and flatten(image).getpixel((size[0] - 1, 3)) == (255, 0, 0)


def test_a_drawing_lies_on_the_background_of_choice(drawings):
    image = open_picture(b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a -->' + svg(RED.format(10, 10)), 16)
    assert [flatten(image, name).getpixel((30, 8)) for name in ("white", "#102030")] == [
        (255,) * 3,
        (16, 32, 48),
    ]
    assert flatten(image).getpixel((3, 8)) == (255, 0, 0)


LAUGHS = (
    "<!DOCTYPE l ["
    + '<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {c} "{f"&{p};" * 10}">' for p, c in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>"
)


@pytest.mark.parametrize("data, said", [
    (svg("<rect/>"), "draws nothing"),
    (svg("<text>a</text>"), "an SVG with text, which needs fonts"),
    (svg('<image href="SECRET" width="20" height="10"/>'), "shows another file, SECRET"),
    (svg('<image xlink:href="file://SECRET" width="20" height="10"/>'), "shows another file, file://SECRET"),
    (svg('<filter id="f"><feImage href="SECRET"/></filter><rect width="9" height="9" filter="url(#f)"/>'),
     "shows another file"),
    # What escapes a look at the text opens nothing all the same.
    (svg('<image id=">" href="SECRET" width="20" height="10"/>'), "draws nothing"),
    (svg(RED.format(9, 9), 'width="1000000" height="1"'), "pixels are more than"),
    (svg("<g>" * 20_000 + "</g>" * 20_000), "too much memory, time or depth"),
    (LAUGHS.encode() + svg("<rect>&i;</rect>"), "no SVG that can be drawn"),
    (svg("<rect")[:60], "no SVG that can be drawn"),
    (b"\xff\xfe" + svg(RED.format(9, 9)).decode().encode("utf-16-le"), "this is no picture"),
    (svg(RED.format(9, 9)).replace(b"red", b"\xff"), "no SVG that can be drawn"),
], ids=range(12))  # fmt: skip
def test_a_drawing_sees_no_file_and_takes_no_more_than_its_share(drawings, data, said, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (20, 10), "red").save(secret)
    data, said = data.replace(b"SECRET", str(secret).encode()), said.replace("SECRET", str(secret)[:50])
    with pytest.raises(PictureError) as raised:
        open_picture(data, 16)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_drawing_that_takes_too_long_is_given_up(drawings, monkeypatch):
    monkeypatch.setattr(formats, "SECONDS", 1)
    monkeypatch.setattr(formats, "RENDER", "import time; time.sleep(60)")
    with pytest.raises(PictureError, match="an SVG that takes more than 3 seconds"):
        open_picture(svg(RED.format(9, 9)))


def heic() -> bytes:
    """A HEIC of two pictures, the first red; without the library only what it would begin with."""
    try:
        import pillow_heif
    except ImportError:
        return struct.pack(">I", 24) + b"ftypheic" + bytes(12) + b"mif1heic"
    file = pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red"))
    file.add_from_pillow(Image.new("RGB", (32, 32), "blue"))
    stream = io.BytesIO()
    file.save(stream, quality=90)
    return stream.getvalue()


def test_of_a_heic_the_first_picture_is_read():
    pytest.importorskip("pillow_heif")
    image = open_picture(heic())
    assert image.size == (64, 48)
    assert (
        max(abs(a - b) for a, b in zip(image.convert("RGB").getpixel((9, 9)), (255, 0, 0), strict=True)) < 12
    )
    assert {".heic", ".heif"} <= readable() and unread("a.HEIC") is None


def test_without_what_reads_them_they_say_what_to_install(monkeypatch):
    monkeypatch.setattr(formats, "_has", lambda kind: False)
    monkeypatch.setattr(formats, "formats", lambda: formats.FORMATS)
    assert unread("a.HEIC") == 'HEIF, which needs pillow-heif: pip install "unclip[heic]"'
    assert unread("a.svg") == "SVG, which needs resvg-py"
    for data, said in ((heic(), "pillow-heif"), (svg(RED.format(9, 9)), "resvg-py")):
        with pytest.raises(PictureError, match=f"which needs {said}"):
            open_picture(data)


def test_no_ending_is_both_read_and_named():
    for ends in ENDINGS.values():
        for end in ends.split():
            assert (unread(f"x.{end}") is None) == (f".{end}" in readable()), end
    assert unread("x.jpg") is None and unread("x.txt") is None and unread("x") is None
    assert unread("x.eps") == "EPS, which is not read" and unread("x.mp4") == "a video, which is not read"


LIKE = ("a.heic", "c.raw", "d.CR2", "e.eps", "f.mp4", "g.xcf", "h.foo", "i")
NAMED = {"c.raw": "a camera's raw data", "d.CR2": "a camera's raw data", "e.eps": "EPS", "f.mp4": "a video",
         "g.xcf": "GIMP", "h.foo": ".foo is no kind of picture", "i": "no ending is no kind"}  # fmt: skip


def test_what_is_not_read_is_named_by_file_and_format_and_counted(tmp_path, drawings):
    top = tmp_path / "in"
    top.mkdir()
    for name in LIKE:
        (top / name).write_bytes(b"x" * 20)
        (top / f"{Path(name).stem}.txt").write_text("a caption")
    (top / "lone.heic").write_bytes(b"x")
    (top / "lonely.json").write_text("{}")
    (top / "z.txt").write_text("a caption")
    for name, kind in (("ok.gif", "GIF"), ("ok.bmp", "BMP")):
        (top / name).write_bytes(encoded(noise(8, 8), kind))
        (top / "ok.txt").write_text("fine")
    (top / "drawn.svg").write_bytes(svg(RED.format(9, 9)))
    (top / "drawn.txt").write_text("drawn")
    (top / "wrong.svg").write_bytes(heic()[:12] + b"garbage")
    (top / "wrong.txt").write_text("wrong")
    result = build(str(top), tmp_path / "out", Options())
    left = dict(result.left)
    assert left.keys() == {*LIKE, "lone.heic", "lonely.json", "z.txt", "wrong.svg"}
    assert all(reason in left[name] for name, reason in NAMED.items()), left
    assert (
        left["z.txt"] == "a caption without a picture" and left["lonely.json"] == "a record without a picture"
    )
    assert result.counts == {"train": 3} and result.manifest["left_out"] == len(left) == len(result.left)
    assert {sample["key"]: sample["image"].size for sample in read_shards(tmp_path / "out")} == {
        "ok": (8, 8), "ok-2": (8, 8), "drawn": (1024, 512)
    }  # fmt: skip


def test_shards_of_other_formats_are_read_by_training_and_named_by_the_doctor(tmp_path, drawings):
    path = tmp_path / "a.tar"
    red = encoded(Image.new("RGB", (8, 8), "red"), "BMP")
    files = {"0.bmp": red, "1.gif": encoded(Image.new("RGB", (8, 8), "red"), "GIF"),
             "2.svg": svg(RED.format(20, 10)), "3.cr2": b"raw", "4.mp4": b"x", "5.xyz": b"x"}  # fmt: skip
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            for member, content in ((name, data), (f"{name[0]}.txt", b"red")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    source = Source(DataConfig(shards=[str(path)], size=4, max_corrupt=1.0))
    batch = next(source.batches(6))
    assert set(batch.key) == {"0", "1", "2"} and len(batch.corrupt) == 3
    assert batch.image.amin((0, 2, 3)).tolist()[0] > 0.98 and batch.image.amax((0, 2, 3)).tolist()[1] < -0.98
    report = as_json(look([str(path)], tiny_clip()))
    assert report["pictures"] == 3 and report["wrong"] == {"no picture": 3}
    reasons = {problem["key"]: problem["reason"] for problem in report["problems"]}
    assert "a camera's raw data" in reasons["3"] and "a video" in reasons["4"] and "only xyz" in reasons["5"]
    result = build(str(path), tmp_path / "out", Options())
    assert result.counts == {"train": 3} and len(result.left) == 3
    assert "a camera's raw data" in dict(result.left)["a.tar: 3"]


def test_a_picture_inside_of_a_picture_has_the_same_bound():
    """An icon that holds a PNG of more pixels than its folder of pictures says."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    ico = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png
    with pytest.raises(PictureError, match="144000000 pixels"):
        open_picture(ico)
