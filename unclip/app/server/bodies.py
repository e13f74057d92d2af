"""Bodies of requests: read only so far, and of the kind that they should be; pictures by what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import anyio
from fastapi import Request
from PIL import Image
from starlette.datastructures import FormData, UploadFile

from ...data.pictures import PictureError, open_picture
from ...files import parse_json
from .asked import Asked
from .errors import Refused

A = TypeVar("A", bound=Asked)
JSON_BYTES, FORM_BYTES = 1 << 20, 52 << 20  # of a whole request; a picture may have 50 MB
FIELDS, FILES, FIELD_BYTES = 64, 16, 256 << 10  # of a form
PIXELS = 4096 * 4096  # the largest picture that is decoded
SIGNS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP"}
decoding = anyio.CapacityLimiter(2)  # pictures at a time, for their memory


async def read_json(request: Request, kind: type[A]) -> A:
    """A request of JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused("this takes JSON: send content-type: application/json", 415)
    try:
        values = parse_json(await request.body(), "the request")
    except ValueError as error:
        raise Refused(str(error), code="invalid_json") from None
    return kind.model_validate(values)


async def read_form(request: Request, kind: type[A]) -> tuple[A, dict[str, list[bytes]]]:
    """A request of a form: its fields, and its files by name; ``image[]`` is ``image``."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refused("this takes a form: send content-type: multipart/form-data", 415)
    async with request.form(max_files=FILES, max_fields=FIELDS, max_part_size=FIELD_BYTES) as form:
        files = {name: [await file.read() for file in some] for name, some in _files(form).items()}
        return kind.model_validate(_fields(form, kind)), files


def _files(form: FormData) -> dict[str, list[UploadFile]]:
    files: dict[str, list[UploadFile]] = {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.setdefault(key.removesuffix("[]"), []).append(value)
    for name in files:
        if name not in ("image", "mask"):
            raise Refused(f"Unknown parameter: {name!r:.90}.", param=name[:80], code="unknown_parameter")
    return files


def _fields(form: FormData, kind: type[Asked]) -> Mapping[str, Any]:
    """A form's texts; of a field that takes a list, all of them. A text "null" or "" is nothing."""
    fields: dict[str, Any] = {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            continue
        name = key.removesuffix("[]")
        if name in ("image", "mask"):
            raise Refused(f"Invalid value for {name!r}: send a file, not a text", param=name)
        if str(kind.model_fields[name].annotation).startswith("list") if name in kind.model_fields else False:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise Refused(f"Invalid value for {name!r:.90}: it is given twice", param=name[:80])
        else:
            fields[name] = value
    return {key: value for key, value in fields.items() if value != "" or key == "prompt"}


async def picture_of(data: bytes, name: str) -> Image.Image:
    """A picture of a client's: PNG, JPEG or WebP by its first bytes; RGB or RGBA."""
    if not any(data.startswith(sign) for sign in SIGNS) or data[:4] == b"RIFF" and data[8:12] != b"WEBP":
        raise Refused(
            f"Invalid value for {name!r}: it is no picture of PNG, JPEG or WebP",
            param=name,
            code="invalid_image",
        )

    try:
        return await anyio.to_thread.run_sync(partial(open_picture, data, pixels=PIXELS), limiter=decoding)
    except PictureError as error:
        raise Refused(f"Invalid value for {name!r}: {error}", param=name, code="invalid_image") from None


def one(files: Mapping[str, list[bytes]], name: str) -> bytes:
    """The one file of that name; ``Refused`` for none, or several."""
    some = files.get(name, [])
    if len(some) != 1:
        said = f"one picture is taken, not {len(some)}" if some else "a picture is missing"
        raise Refused(f"Invalid value for {name!r}: {said}", param=name, code="invalid_image")
    return some[0]


def as_event(values: object) -> str:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)
