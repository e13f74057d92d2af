"""What strangers send to a server, byte by byte: a name, the bytes, and the statuses that are right."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib

from PIL import Image
from serving import file_of

GENERATIONS, EDITS, VARIATIONS = (f"/v1/images/{verb}" for verb in ("generations", "edits", "variations"))
INTERPOLATIONS = "/v1/images/interpolations"
HOST = "127.0.0.1"
CUT = 0  # the status of a connection that is closed without an answer
RED = file_of(Image.new("RGB", (64, 64), "red"))


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    told = {"host": HOST, "connection": "close", "content-length": str(len(body))}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items() if value)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def raw_json(body: bytes, **headers: str) -> bytes:
    return request("POST", GENERATIONS, body, **{"content_type": "application/json", **headers})


def chunked(body: bytes) -> bytes:
    return raw_json(body, content_length="", transfer_encoding="chunked")


def asks(**fields: object) -> bytes:
    return raw_json(json.dumps({"prompt": "a cat", **fields}).encode())


def part(name: str, data: bytes | str, file: str | None = None) -> bytes:
    named = f'; filename="{file}"' if file is not None else ""
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + (data if isinstance(data, bytes) else data.encode()) + b"\r\n"


def form(path: str, *parts: bytes, end: bytes = b"--edge--\r\n", **headers: str) -> bytes:
    headers = {"content_type": "multipart/form-data; boundary=edge", **headers}
    return request("POST", path, b"".join(parts) + end, **headers)


def varies(image: bytes, file: str = "a.png", **fields: str) -> bytes:
    return form(VARIATIONS, part("image", image, file), *(part(*field) for field in fields.items()))


def edits(image: bytes, mask: bytes) -> bytes:
    return form(EDITS, part("image", image, "a.png"), part("mask", mask, "m.png"), part("prompt", "a"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, rows: bytes = b"") -> bytes:
    """A PNG that says it is so large, whatever it holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", header, *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


def zipped(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(size))
    return file.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
CLEAR = Image.new("RGBA", (32, 32))
BOMB = zlib.compress(bytes(20 << 20))

VALUES = {
    name: [asks(**{name: value}) for value in values]
    for name, values in {
        "n": [0, -1, 11, 10**9, 10**400, 1.5, "many", True, [1], {}],
        "size": ["big", "0x0", "-64x64", "99999x99999", "64x", "64x64x64", 64, [64, 64], "6\u06634x64"],
        "seed": [2**63, -(2**63) - 1, "one", 1e300, "9" * 5000],
        "guidance_scale": ["NaN", "Infinity", 1e999, "much", []],
        "steps": [0, -5, 10**9, "9" * 5000, "1;1", "ddim", {"a": 1}],
        "partial_images": [-1, 51, 10**9],
        "sampler": ["magic", 7, {}],
        "prompt": [7, ["a"], {}, True],
        "negative_prompt": [7, ["a"]],
        "model": [7, ["tiny"], {"a": 1}],
        "response_format": ["file:///etc/passwd", 0],
        "output_format": ["svg", "../png"],
        "resize": ["perhaps", 7],
        "__class__": [1],
    }.items()
}
TEXTS = {
    "a model that is a path": (asks(model="../../etc/passwd"), {404}),
    "a model that is an address": (asks(model="http://example.org/model"), {404}),
    "a prompt of ten megabytes": (asks(prompt="x" * (10 << 20)), {413}),
    "a prompt of NULs": (asks(prompt="\0\0"), {400}),
    "a prompt with a NUL": (asks(prompt="a\0b"), {400}),
    "half of a surrogate pair": (raw_json(b'{"prompt": "a \\ud800"}'), {400}),
    "a name with half of a pair": (raw_json(b'{"prompt": "a", "\\ud800": 1}'), {400}),
    "a model with half of a pair": (raw_json(b'{"prompt": "a", "model": "\\udfff"}'), {404}),
    "no prompt": (raw_json(b'{"n": 1}'), {400}),
    "broken JSON": (raw_json(b'{"prompt": "a cat"'), {400}),
    "deep JSON": (raw_json(b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), {400}),
    "a list": (raw_json(b'["a cat"]'), {400}),
    "nothing": (raw_json(b""), {400}),
    "no UTF-8": (raw_json(b'{"prompt": "\xff\xfe"}'), {400}),
    "UTF-16": (raw_json('{"prompt": "a"}'.encode("utf-16")), {400}),
    "not a number": (raw_json(b'{"prompt": "a", "guidance_scale": NaN}'), {400}),
    "a number of 5000 digits": (raw_json(b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}"), {400}),
    "ten thousand fields": (
        raw_json(json.dumps({"prompt": "a", **dict.fromkeys(map(str, range(10_000)), 1)}).encode()),
        {400},
    ),
    "JSON that says to be text": (raw_json(b'{"prompt": "a"}', content_type="text/plain"), {415}),
    "JSON that says nothing": (raw_json(b'{"prompt": "a"}', content_type=""), {415}),
    "a form where JSON belongs": (form(GENERATIONS, part("prompt", "a")), {415}),
    "a zipped body": (
        raw_json(gzip.compress(b'{"prompt": "a"}' + b" " * 10_000_000), content_encoding="gzip"),
        {400},
    ),
}
FORMS = {
    "a truncated form": (form(VARIATIONS, part("image", RED, "a.png")[:150], end=b""), {400}),
    "a form without its end": (form(VARIATIONS, part("image", RED, "a.png"), end=b""), {400}),
    "a form without a boundary": (
        form(VARIATIONS, part("image", RED), content_type="multipart/form-data"),
        {400},
    ),
    "a form of another boundary": (
        form(VARIATIONS, part("image", RED), content_type="multipart/form-data; boundary=x"),
        {400},
    ),
    "a form that is noise": (form(VARIATIONS, bytes(range(256)) * 40), {400}),
    "JSON where a form belongs": (
        request("POST", VARIATIONS, b'{"image": "a"}', content_type="application/json"),
        {415},
    ),
    "no picture": (form(VARIATIONS, part("n", "1")), {400}),
    "a picture's address": (form(VARIATIONS, part("image", "http://169.254.169.254/latest")), {400}),
    "a picture's path": (form(VARIATIONS, part("image", "/etc/passwd")), {400}),
    "two pictures": (form(VARIATIONS, part("image", RED, "a"), part("image[]", RED, "b")), {400}),
    "17 files": (form(VARIATIONS, *[part("image[]", RED, "a")] * 17), {400}),
    "65 fields": (form(VARIATIONS, *(part(f"a{k}", "1") for k in range(65))), {400}),
    "a field twice": (form(VARIATIONS, part("image", RED, "a"), part("n", "1"), part("n", "2")), {400}),
    "a field of a megabyte": (form(VARIATIONS, part("user", "x" * (1 << 20))), {400}),
    "a file that nobody takes": (form(VARIATIONS, part("script", b"rm -rf", "a.sh")), {400}),
    "a form's n of 10^9": (varies(RED, n=str(10**9)), {400}),
    "a form's n of words": (varies(RED, n="many"), {400}),
    "a spread that is no number": (varies(RED, spread="nan"), {400}),
    "a part without a name": (form(VARIATIONS, b"--edge\r\nContent-Type: a\r\n\r\nx\r\n"), {400}),
    "a form's prompt with a NUL": (form(EDITS, part("image", RED, "a.png"), part("prompt", "a\0b")), {400}),
    "a path from nothing": (form(INTERPOLATIONS, part("n", "3")), {400}),
    "a path of three ends": (form(INTERPOLATIONS, *[part("prompt", "a")] * 3), {400}),
}
PICTURES = {
    "SVG": (varies(SVG, "a.svg"), {400}),
    "SVG that says to be PNG": (varies(SVG), {400}),
    "HTML": (varies(b"<html><script>alert(1)</script>"), {400}),
    "an empty file": (varies(b""), {400}),
    "a zip bomb": (varies(zipped(20 << 20), "a.zip"), {400}),
    "a GIF": (varies(file_of(Image.new("P", (8, 8)), "GIF")), {400}),
    "a TIFF": (varies(file_of(Image.new("RGB", (8, 8)), "TIFF")), {400}),
    "a PNG bomb of size": (varies(png(60_000, 60_000)), {400}),
    "a PNG bomb of rows": (varies(png(8, 8, rows=bytes(20 << 20))), {200}),
    "a PNG bomb of text": (varies(png(8, 8, chunk(b"zTXt", b"a\0\0" + BOMB))), {400}),
    "a PNG bomb of a profile": (varies(png(8, 8, chunk(b"iCCP", b"a\0\0" + BOMB))), {400}),
    "a PNG of no size": (varies(png(0, 0)), {400}),
    "a PNG that ends": (varies(RED[: len(RED) // 2]), {400}),
    "a PNG's first bytes": (varies(b"\x89PNG\r\n\x1a\n"), {400}),
    "a JPEG that ends": (varies(b"\xff\xd8\xff\xe0\0\x10JFIF"), {400}),
    "a WebP that is a sound": (varies(b"RIFF\x24\0\0\0WAVEfmt "), {400}),
    "a WebP that ends": (varies(b"RIFF\x24\0\0\0WEBPVP8 "), {400}),
    "a mask of another size": (edits(RED, file_of(CLEAR)), {400}),
    "a mask that is opaque": (edits(RED, RED), {400}),
    "a mask that is a bomb": (edits(RED, png(60_000, 60_000)), {400}),
    "a mask that is SVG": (edits(RED, SVG), {400}),
}
WIRE = {
    "no HTTP": (b"hello\r\n\r\n", {400}),
    "TLS": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(64), {400}),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 403}),
    "a head without an end": (request("GET", "/health", a="x" * (1 << 20)), {400}),
    "a line without an end": (b"GET /" + b"a" * (1 << 20), {400}),
    "a header with a NUL": (request("GET", "/health", a="b\0c"), {400}),
    "two lengths": (raw_json(b"{}", a="b\r\ncontent-length: 9"), {400}),
    "a length below 0": (raw_json(b"{}", content_length="-1"), {400}),
    "a length of words": (raw_json(b"{}", content_length="two"), {400}),
    "a length of a terabyte": (raw_json(b"{}", content_length=str(1 << 40)), {413, CUT}),
    "a form of 60 megabytes": (form(VARIATIONS, content_length=str(60 << 20)), {413, 408}),
    "chunks of no size": (
        chunked(b"zz\r\n{}\r\n"),
        {400},
    ),
    "chunks that are more than is read": (
        chunked(b"200000\r\n" + b" " * 0x200000 + b"\r\n0\r\n\r\n"),
        {413},
    ),
    "a coding that nobody knows": (raw_json(b"{}", content_length="", transfer_encoding="br"), {400, 501}),
    "no host": (request("GET", "/v1/models", host=""), {400}),
    "another host": (request("GET", "/v1/models", host="evil.example"), {403}),
    "another site": (raw_json(b'{"prompt": "a"}', origin="https://evil.example"), {403}),
    "a site of no name": (raw_json(b'{"prompt": "a"}', origin="null"), {403}),
    "a verb of another kind": (request("DELETE", GENERATIONS), {405}),
    "a way up": (request("GET", "/page/../../../../../etc/passwd"), {404}),
    "a way up in disguise": (request("GET", "/page/%2e%2e/%2e%2e/%2e%2e/settings.py"), {404}),
    "a way up in the store": (request("GET", "/v1/images/files/..%2f..%2f..%2fetc%2fpasswd"), {404}),
    "a NUL in a path": (request("GET", "/page/%00"), {404}),
    "a NUL in the store": (request("GET", "/v1/images/files/%00.png"), {404}),
    "a path of no UTF-8": (request("GET", "/page/%ff%fe"), {404}),
    "a path of ten thousand": (request("GET", "/page/" + "a" * 10_000), {404}),
    "a socket of the web": (
        request("GET", "/nowhere", upgrade="websocket", connection="Upgrade, close",
                sec_websocket_version="13", sec_websocket_key="AAAAAAAAAAAAAAAAAAAAAA=="),
        {404},
    ),
}  # fmt: skip
REQUESTS = {**TEXTS, **FORMS, **PICTURES, **WIRE}
