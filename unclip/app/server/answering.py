"""A request from its place in the queue to its answer, whichever its verb is."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from ...pipeline.pipeline import Pipeline
from ...pipeline.request import Wish
from .asked import Asked
from .house import House
from .queue.jobs import Left
from .replies import Events, Reply

log = logging.getLogger("unclip.server")
T = TypeVar("T")


@dataclass(frozen=True)
class Asking:
    """What a client asks for, read and checked."""

    asked: Asked
    wish: Callable[[Pipeline, int], Wish]  # of the model and a seed
    computes: bool = False  # whether that needs the networks, and so their thread, between two batches
    prompt: str | None = None
    pictures: Mapping[str, list[bytes]] = field(default_factory=dict)  # the files that came with it
    hole: bool = False  # whether only a part is drawn anew


async def answered(request: Request, kind: str, read: Callable[[], Awaitable[Asking]]) -> Response:
    """The answer. The body is read once there is a place for the request, which it leaves however it ends."""
    house: House = request.app.state.house
    job = house.batcher.admit()
    try:
        asking = await read()
        asked = asking.asked
        name, pipeline = house.model(asked.model)
        side = asked.side(pipeline.size, name, house.settings.resize)
        house.check_cost(pipeline, asked, asking.hole)
        seed = secrets.randbelow(1 << 32) if asked.seed is None else asked.seed
        if house.settings.log_prompts:
            log.info("%s %s %r seed %s", request.scope["request_id"], kind, asking.prompt, seed)
        make = partial(asking.wish, pipeline, seed)
        making = house.batcher.apart(job, make) if asking.computes else anyio.to_thread.run_sync(make)
        wish = await unless_gone(request, making)
        base = str(request.url_for("files", name="-")).removesuffix("-")
        reply = Reply(asked, kind, name, side, seed, base, house.store, house.metrics)
        house.batcher.put(job, name, wish, asked.partial_images if asked.stream else 0)
        if asked.stream:
            return Events(job, reply.events(job))
        answer = await unless_gone(request, reply.whole(job))
    except (Left, ClientDisconnect):
        house.metrics.left.inc()
        job.leave()
        return Response(status_code=499)  # as nginx has it; nobody reads it
    except BaseException:
        job.leave()
        raise
    job.leave()
    return JSONResponse(answer)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; ``Left`` once the client has gone."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Left
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
