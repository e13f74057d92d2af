"""Kinds of picture files: which are read, which need an extra, and drawings, which are made into pixels.

Imports no PyTorch.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import PurePath

from PIL import Image

# What PIL opens. Left out are formats that run other programs (EPS) or hold no pictures (PDF, HDF5, ...).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF", "TGA", "ICO",
           "PCX", "SGI", "PSD", "QOI", "DDS", "ICNS")  # fmt: skip
# What reads a format that PIL does not: its module, and what is installed for it.
EXTRAS = {"SVG": ("resvg_py", "resvg-py"), "HEIF": ("pillow_heif", 'pillow-heif: pip install "unclip[heic]"')}
# Formats by the endings of their files, where PIL does not know them.
ENDINGS = {
    "SVG": "svg",
    "HEIF": "heic heif hif",
    "AVIF": "avif avifs",
    "compressed SVG": "svgz",
    "a camera's raw data": "3fr arw cr2 cr3 crw dng erf nef nrw orf pef raf raw rw2 srw x3f",
    "JPEG XL": "jxl",
    "JPEG XR": "jxr wdp",
    "a drawing of Illustrator": "ai",
    "PDF": "pdf",
    "an image of GIMP": "xcf",
    "an image of Krita": "kra",
    "a large image of Photoshop": "psb",
    "OpenEXR": "exr",
    "Radiance HDR": "hdr",
    "DICOM": "dcm",
    "BPG": "bpg",
    "a video": "mp4 mov webm avi mkv m4v",
}
SIDE = 512  # pixels that a drawing's shorter side is made, where nothing else is asked for
SECONDS, BYTES = 20, 2 << 30  # that making a drawing into pixels may take

# A picture of a drawing that lies elsewhere, and where.
OUTSIDE = re.compile(rb"<(?:\w+:)?(?:fe)?[iI]mage\b[^>]*?href\s*=\s*[\"'](?!\s*(?:#|data:))([^\"']*)")
# Run by itself: a drawing may nest until the stack ends, ask for any memory, and name any file. So it has
# limits, and after the imports no file can be opened.
RENDER = """
import io, re, resource, sys
from xml.etree import ElementTree
import resvg_py
side, pixels, seconds, most = map(int, sys.argv[1:])
for what, limit in ((resource.RLIMIT_AS, most), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_NOFILE, 0)):
    resource.setrlimit(what, (limit, limit))
text = sys.stdin.buffer.read().removeprefix(bytes((0xEF, 0xBB, 0xBF)))
try:
    _, root = next(ElementTree.iterparse(io.BytesIO(text), ["start"]))
    number = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?")
    box = [float(x) for x in number.findall(root.get("viewBox", ""))][2:4]
    sides = [re.sub("(px|pt|mm|cm|in|pc)$", "", root.get(x, "")) for x in ("width", "height")]
    wanted = [number.fullmatch(x) for x in sides]
    wanted = [float(x[0]) for x in wanted] if all(wanted) else box
    if len(wanted) != 2 or not all(0 < x < 1e9 for x in wanted):
        wanted = [1, 1]
    scale = side / min(wanted)
    size = [max(1, round(x * scale)) for x in wanted]
    if size[0] * size[1] > pixels:
        sys.exit(f"{size[0]} x {size[1]} pixels are more than {pixels:,}")
    png = resvg_py.svg_to_bytes(
        svg_string=text.decode(), skip_system_fonts=True, dpi=96.0, width=size[0], height=size[1]
    )
except (ValueError, SyntaxError, MemoryError, OverflowError, StopIteration) as error:
    sys.exit(f"no SVG that can be drawn: {error}"[:200])
sys.stdout.buffer.write(bytes(png))
"""


class PictureError(ValueError):
    """A picture that cannot be used; the message says why."""


@cache
def formats() -> tuple[str, ...]:
    """PIL's names of what it can open here; the opener of HEIC is added to it where it is installed."""
    Image.init()
    if _has("HEIF"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(kind for kind in (*FORMATS, "HEIF") if kind in Image.OPEN)


def _has(kind: str) -> bool:
    return find_spec(EXTRAS[kind][0]) is not None


def readable() -> set[str]:
    """The endings (".jpg") of the files that are opened as pictures here."""
    kinds = {*formats(), "MPO"}
    endings = {end for end, kind in Image.registered_extensions().items() if kind in kinds}
    return endings | ({".svg"} if _has("SVG") else set())


def unread(name: str) -> str | None:
    """Why a file that a picture's ending names is not read; None for what is read, or is no picture."""
    end = PurePath(name).suffix.lower()
    if not end or end in readable():
        return None
    kind = next((kind for kind, ends in ENDINGS.items() if end[1:] in ends.split()), None)
    return _why(kind or Image.registered_extensions().get(end))


def _why(kind: str | None) -> str | None:
    if kind in EXTRAS:
        return f"{kind}, which needs {EXTRAS[kind][1]}"
    return kind and f"{kind}, which is not read"


def opened(data: bytes, least: float | None, pixels: int) -> bytes:
    """What PIL is to open: the file itself, or a drawing made into a PNG.

    least: pixels of a drawing's shorter side; None: ``SIDE``. pixels: the most that it may have.
    ``PictureError`` for what is not read, by what the file holds and not by its name.
    """
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"):
        if not _has("HEIF"):
            raise PictureError(_why("HEIF"))
    elif re.match(rb"(?:\xef\xbb\xbf)?\s*<", data[:100]) and re.search(rb"<(?:\w+:)?svg[\s>]", data[:8192]):
        return _drawn(data, SIDE if least is None else max(1, round(least)), pixels)
    return data


def _drawn(data: bytes, side: int, pixels: int) -> bytes:
    """An SVG as a PNG, transparent where nothing is drawn; text needs fonts, which machines differ in."""
    if not _has("SVG"):
        raise PictureError(_why("SVG"))
    if re.search(rb"<(?:\w+:)?text[\s>]", data):
        raise PictureError("an SVG with text, which needs fonts: make its text into paths")
    if other := OUTSIDE.search(data):
        raise PictureError(f"an SVG that shows another file, {other[1][:80].decode(errors='replace')}")
    limits = map(str, (side, pixels, SECONDS, BYTES))
    try:
        done = subprocess.run(
            [sys.executable, "-c", RENDER, *limits],
            input=data,
            capture_output=True,
            timeout=3 * SECONDS,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise PictureError(f"an SVG that takes more than {3 * SECONDS} seconds") from None
    if done.returncode == 1:
        raise PictureError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
    if done.returncode:
        raise PictureError("an SVG that takes too much memory, time or depth")
    if not Image.open(io.BytesIO(done.stdout)).convert("RGBA").getchannel("A").getextrema()[1]:
        raise PictureError("an SVG that draws nothing")
    return done.stdout
