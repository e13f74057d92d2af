"""``/v1/images/...``: each verb reads what is asked for, and says what makes a ``Wish`` of it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from PIL import Image

from ...pipeline import edits
from ...pipeline.pipeline import Pipeline
from ...pipeline.request import Wish, wish_of
from .answering import Asking, answered
from .asked import Asked, Edit, Generation, Interpolation, Variation
from .bodies import FORM_BYTES, JSON_BYTES, one, picture_of, read_form, read_json
from .errors import Refused
from .house import House
from .mask import hole_of, one_size

router = APIRouter(prefix="/v1/images", tags=["images"])
JSON, FORM = "application/json", "multipart/form-data"


def body(kind: type[Asked], media: str, *files: str) -> dict[str, Any]:
    """The description of a request's body, for ``/docs``."""
    schema = kind.model_json_schema()
    for name in files:
        schema["properties"][name] = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {media: {"schema": schema}}}}


def said(pipeline: Pipeline, prompt: str) -> str | None:
    """The prompt; nothing for a model that takes none, of which clients send an empty one."""
    return prompt if prompt or pipeline.takes_prompt else None


@router.post("/generations", max_body_size=JSON_BYTES, openapi_extra=body(Generation, JSON))
async def generations(request: Request) -> Response:
    """Pictures of a prompt."""

    async def read() -> Asking:
        asked = await read_json(request, Generation)

        def wish(pipeline: Pipeline, seed: int) -> Wish:
            return wish_of(pipeline, said(pipeline, asked.prompt), n=asked.n, seed=seed, **asked.options)

        return Asking(asked, wish, prompt=asked.prompt)

    return await answered(request, "image_generation", read)


@router.post("/edits", max_body_size=FORM_BYTES, openapi_extra=body(Edit, FORM, "image", "mask"))
async def edit(request: Request) -> Response:
    """Pictures with the transparent part of the mask, or of the picture itself, drawn anew.

    Of a picture without either the whole is drawn over as the prompt says (SDEdit), as far as ``strength``.
    """

    async def read() -> Asking:
        asked, files = await read_form(request, Edit)
        picture = await picture_of(one(files, "image"), "image")
        mask = await picture_of(one(files, "mask"), "mask") if "mask" in files else None
        hole = hole_of(picture, mask)

        def wish(pipeline: Pipeline, seed: int) -> Wish:
            prompt = said(pipeline, asked.prompt)
            if hole is None:
                start = one_size(picture)
                return edits.redraw(
                    pipeline, start, prompt, asked.strength, asked.n, seed, None, **asked.options
                )
            image, white = hole
            return wish_of(pipeline, prompt, n=asked.n, seed=seed, image=image, mask=white, **asked.options)

        return Asking(asked, wish, prompt=asked.prompt, pictures=files, hole=hole is not None)

    return await answered(request, "image_edit", read)


@router.post("/variations", max_body_size=FORM_BYTES, openapi_extra=body(Variation, FORM, "image"))
async def variations(request: Request) -> Response:
    """Pictures of what CLIP sees in one."""

    async def read() -> Asking:
        asked, files = await read_form(request, Variation)
        picture = one_size(await picture_of(one(files, "image"), "image"))

        def wish(pipeline: Pipeline, seed: int) -> Wish:
            return edits.vary(pipeline, picture, asked.n, asked.spread, seed, **asked.options)

        return Asking(asked, wish, computes=True, pictures=files)

    return await answered(request, "image_variation", read)


@router.post("/interpolations", max_body_size=FORM_BYTES, openapi_extra=body(Interpolation, FORM, "image[]"))
async def interpolations(request: Request) -> Response:
    """Pictures on the way from one picture or prompt to another; the pictures come first."""

    async def read() -> Asking:
        asked, files = await read_form(request, Interpolation)
        pictures = [one_size(await picture_of(data, "image")) for data in files.get("image", [])]
        # A text that ends as a picture's file does would be opened; with a space behind it, it does not.
        ends: list[Image.Image | str] = [*pictures, *(f"{text} " for text in asked.prompt)]
        if len(ends) != 2:
            raise Refused(
                f"a path leads from one picture or prompt to another; these are {len(ends)}", param="image"
            )

        a, b = ends

        def wish(pipeline: Pipeline, seed: int) -> Wish:
            return edits.interpolate(pipeline, a, b, asked.n, seed, **asked.options)

        texts = " / ".join(asked.prompt) or None
        return Asking(asked, wish, computes=True, prompt=texts, pictures=files)

    return await answered(request, "image_interpolation", read)


@router.get("/files/{name}", name="files", include_in_schema=False)
async def files(name: str, request: Request) -> Response:
    """A picture that was answered by its address."""
    house: House = request.app.state.house
    data = house.store.find(name)
    if data is None:
        raise Refused("there is no such picture, or none any more: addresses live for an hour", 404)
    media = f"image/{name.rpartition('.')[2]}"
    return Response(data, media_type=media, headers={"Cache-Control": "private, max-age=3600, immutable"})
