"""``/v1/images/...``: each verb reads what is asked for, makes a ``Wish`` of it, and lets it wait."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ...pipeline.pipeline import Pipeline
from ...pipeline.request import Wish, wish_of
from .asked import Asked, Generation
from .batches import Job, Left
from .bodies import JSON_BYTES, read_json
from .errors import Refused
from .house import House
from .replies import Events, Reply

router = APIRouter(prefix="/v1/images", tags=["images"])
Ready = tuple[Asked, Callable[[Pipeline, int], Awaitable[Wish]]]
"""What is asked for, and what makes a wish of it, by the model and the seed."""


def body(kind: type[Asked], media: str, files: tuple[str, ...] = ()) -> dict[str, Any]:
    """The description of a request's body, for ``/docs``."""
    schema = kind.model_json_schema()
    for name in files:
        schema["properties"][name] = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {media: {"schema": schema}}}}


@router.post("/generations", max_body_size=JSON_BYTES, openapi_extra=body(Generation, "application/json"))
async def generations(request: Request) -> Response:
    """Pictures of a prompt."""

    async def read(job: Job) -> Ready:
        asked = await read_json(request, Generation)

        async def wish(pipeline: Pipeline, seed: int) -> Wish:
            return wish_of(pipeline, asked.prompt, n=asked.n, seed=seed, **asked.options)

        return asked, wish

    return await answered(request, "image_generation", read)


async def answered(request: Request, kind: str, read: Callable[[Job], Awaitable[Ready]]) -> Response:
    """A request from its place in the queue to its answer; its body is read once it has a place."""
    house: House = request.app.state.house
    job = house.batcher.admit()
    try:
        asked, wish = await read(job)
        name, pipeline = house.model(asked.model)
        side = asked.side(pipeline.size, name, house.settings.resize)
        seed = secrets.randbelow(1 << 32) if asked.seed is None else asked.seed
        made = await wish(pipeline, seed)
        house.check_cost(pipeline, made)
        reply = Reply(
            asked, kind, name, side, seed, str(request.url_for("files", name="")), house.store, house.metrics
        )
        house.batcher.put(job, name, made, asked.partial_images if asked.stream else 0)
        if asked.stream:
            return Events(job, reply.events(job))
        answer = await unless_gone(request, reply.whole(job))
    except BaseException as error:
        job.leave()
        if isinstance(error, Left):
            house.metrics.left.inc()
            return Response(status_code=499)  # as nginx has it; nobody reads it
        raise
    job.leave()
    return JSONResponse(answer)


async def unless_gone(request: Request, work: Any) -> Any:
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


@router.get("/files/{name:path}", name="files", include_in_schema=False)
async def files(name: str, request: Request) -> Response:
    """A picture that was answered by its address."""
    house: House = request.app.state.house
    data = house.store.find(name)
    if data is None:
        raise Refused("there is no such picture, or none any more: addresses live for an hour", 404)
    media = f"image/{name.rpartition('.')[2]}"
    headers = {"Cache-Control": "private, max-age=3600, immutable", "Content-Disposition": "inline"}
    return Response(data, media_type=media, headers=headers)
