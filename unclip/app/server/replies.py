"""Answers: pictures as files, as JSON, and as server-sent events."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from PIL import Image
from starlette.types import Receive, Scope, Send

from ...data.images import to_pil
from ...provenance import png_info
from .asked import Asked
from .bodies import as_event
from .errors import refusal
from .queue.jobs import Finished, Job, Partial, Place
from .queue.metrics import Metrics
from .store import Store

SECONDS = 15.0  # between signs of life where nothing happens
NOTHING = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "total_tokens": 0,
}  # what is billed


def encoded(picture: Image.Image, format: str, compression: int) -> bytes:
    """A picture as a file: png, jpeg or webp; compression is the quality of the latter two, 0 to 100."""
    file = io.BytesIO()
    if format == "png":
        picture.save(file, "PNG", compress_level=1, pnginfo=png_info(picture))
    else:
        picture.save(file, format.upper(), quality=max(1, compression))
    return file.getvalue()


@dataclass(frozen=True)
class Reply:
    """How the pictures of one request are answered."""

    asked: Asked
    kind: str  # image_generation, image_edit, image_variation, image_interpolation
    model: str
    side: int  # pixels
    seed: int
    base: str  # address of the server, before the names of the store
    store: Store
    metrics: Metrics

    async def file(self, picture: Image.Image, k: int | None) -> bytes:
        """A picture as a file of the size and format that were asked for; k: which, None = not finished."""

        def work() -> bytes:
            at_size = picture if picture.size[0] == self.side else picture.resize((self.side,) * 2, RESAMPLE)
            with self.metrics.seconds.labels("file").time():
                return encoded(at_size, self.asked.output_format, self.asked.output_compression)

        return await anyio.to_thread.run_sync(work)

    async def item(self, event: Finished) -> dict[str, Any]:
        """A finished picture as an element of ``data``."""
        data = await self.file(event.image, event.picture)
        item: dict[str, Any] = {"seed": self.seed, "k": event.picture}
        if self.asked.as_url:
            return {"url": f"{self.base}{self.store.keep(data, f'.{self.asked.output_format}')}", **item}
        return {"b64_json": base64.b64encode(data).decode(), **item}

    @property
    def facts(self) -> dict[str, Any]:
        """What every answer and event says besides."""
        return {
            "background": "opaque",
            "output_format": self.asked.output_format,
            "quality": "auto",
            "size": f"{self.side}x{self.side}",
            "model": self.model,
        }

    async def whole(self, job: Job) -> dict[str, Any]:
        """All pictures in one answer."""
        items: dict[int, dict[str, Any]] = {}
        async for event in job.follow():
            if isinstance(event, Finished):
                items[event.picture] = await self.item(event)
        data = [items[k] for k in sorted(items)]
        facts = {key: value for key, value in self.facts.items() if key != "quality"}
        return {"created": int(time.time()), "data": data, **facts, "usage": NOTHING}

    async def events(self, job: Job) -> AsyncIterator[bytes]:
        """What happens to a request, as server-sent events; an error is the last of them."""
        try:
            async for event in job.follow():
                yield await self.event(event)
        except Exception as error:
            yield format_sse_event(data_str=as_event(refusal(error).body), event="error")
        yield format_sse_event(data_str="[DONE]")

    async def event(self, event: object) -> bytes:
        said: dict[str, Any]
        if isinstance(event, Place):
            said = {"type": "unclip.queued", "place": event.number}
        elif isinstance(event, Partial):
            data = await self.file(await anyio.to_thread.run_sync(to_pil, event.pixels), None)
            said = {
                "type": f"{self.kind}.partial_image",
                "b64_json": base64.b64encode(data).decode(),
                "partial_image_index": event.index,
                "index": event.picture,
            }
        else:
            assert isinstance(event, Finished)
            said = {"type": f"{self.kind}.completed", "usage": NOTHING, "index": event.picture}
            said |= await self.item(event)
        said |= {"created_at": int(time.time()), **self.facts, "seed": self.seed}
        return format_sse_event(data_str=as_event(said), event=said["type"])


RESAMPLE = Image.Resampling.BICUBIC


async def kept_alive(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events, and a comment where nothing happens for long, for proxies that would hang up."""
    following: asyncio.Task[bytes] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({following}, timeout=SECONDS)
            if not done:
                yield KEEPALIVE_COMMENT
                continue
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield event
    finally:
        if following is not None:
            following.cancel()


class Events(EventSourceResponse):
    """Events of a job, which leaves when they end, however they do."""

    def __init__(self, job: Job, events: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(kept_alive(events), headers=headers)
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.leave()
