"""The application: routes, what stands before them, and what begins and ends with it."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware

from ... import __version__
from ...pipeline.pipeline import Pipeline
from . import errors, images
from .guard import Guard
from .house import House
from .settings import Settings

PAGE = Path(__file__).parent / "page"
mimetypes.add_type("text/javascript", ".js")  # whatever the machine's own list says


def application(models: Mapping[str, Pipeline], settings: Settings = Settings()) -> FastAPI:  # noqa: B008
    """A server's application; its ``state.house`` holds the queue.

    models: by the names that clients use, the default first.
    """
    house = House(models, settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        drawing = asyncio.create_task(house.batcher.run())
        yield
        house.batcher.close()
        await drawing
        house.batcher.thread.shutdown()
        house.store.close()

    app = FastAPI(title="unclip", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.state.house = house
    errors.add_to(app)
    app.include_router(images.router)
    _add_models(app, house)
    _add_health(app, house)
    _add_page(app)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Guard, settings=settings, metrics=house.metrics)
    return app


def _add_models(app: FastAPI, house: House) -> None:
    @app.get("/v1/models", tags=["models"])
    async def models() -> dict[str, Any]:
        """The models that are here."""
        return {"object": "list", "data": [house.described(name) for name in house.models]}

    @app.get("/v1/models/{name:path}", tags=["models"])
    async def model(name: str) -> dict[str, Any]:
        """A model: the size of its pictures, what it can do, and how it draws unless told otherwise."""
        return house.detailed(name)


def _add_health(app: FastAPI, house: House) -> None:
    @app.get("/health", tags=["server"])
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/ready", tags=["server"])
    async def ready() -> Response:
        """Requests are taken."""
        if house.batcher.closing:
            return JSONResponse({"status": "shutting down"}, 503)
        return JSONResponse({"status": "ok", "models": list(house.models)})

    @app.get("/metrics", tags=["server"])
    async def metrics(request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(house.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE, check_dir=False), name="page")
