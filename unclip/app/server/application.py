"""The application: routes, what stands before them, and what begins and ends with it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import mimetypes
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from ... import __version__
from ...pipeline.pipeline import Pipeline
from . import errors, images
from .errors import Refused
from .guard import CSP, Guard
from .house import House
from .settings import Settings

DOCS = "/docs/files"
HEAD_SECONDS = 20.0  # in which a request's head must have come
CONNECTIONS = 512  # at a time; of more each is told to come again
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

    app = FastAPIOffline(None, None, title="unclip", version=__version__, lifespan=life, static_url=DOCS)
    app.state.house = house
    errors.add_to(app)
    app.include_router(images.router)
    _add_models(app, house)
    _add_health(app, house)
    _add_docs(app)
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


class Server(uvicorn.Server):
    """Refuses what waits as soon as it is told to end, so that it can."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.house.batcher.close_soon()  # type: ignore[union-attr]
        super().handle_exit(sig, frame)

    @contextmanager
    def aside(self) -> Iterator[int]:
        """Serves in a thread, as long as the block is; the port. It ends as SIGTERM ends it."""
        thread = threading.Thread(target=self.run)
        thread.start()
        while not self.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start; what it logged says why")
            time.sleep(0.01)
        try:
            yield self.servers[0].sockets[0].getsockname()[1]
        finally:
            self.config.app.state.house.batcher.close_soon()  # type: ignore[union-attr]
            self.should_exit = True
            thread.join()


class Hasty(H11Protocol):
    """Hangs up on connections over which no whole head of a request comes in ``HEAD_SECONDS``, and says in
    our own form what never becomes a request: no HTTP, and a connection too many."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._refuse(Refused("too many are connected; come again", 503, headers={"Retry-After": "5"}))
        self._expect()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refused("this is no request of HTTP/1.1, or none that can be read"))

    def _refuse(self, refused: Refused) -> None:
        response = refused.response
        status = f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}".encode()
        lines = [status, b"connection: close", *(b": ".join(pair) for pair in response.raw_headers)]
        self.transport.write(b"\r\n".join([*lines, b"", b""]) + bytes(response.body))
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._idle and self.late is None:
            self._expect()
        super().data_received(data)
        if not self._idle and self.late is not None:
            self.late.cancel()
            self.late = None

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect(self) -> None:
        self.late = self.loop.call_later(HEAD_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        self.late = None
        if self._idle:
            self.transport.close()


def server_of(app: FastAPI, port: int) -> Server:
    """The server of an application, at the host of its settings; 0 = any port that is free."""
    settings: Settings = app.state.house.settings
    config = uvicorn.Config(
        app, host=settings.host, port=port, http=Hasty, ws="none", log_level="info", server_header=False
    )
    return Server(config)


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
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(house.metrics.collectors), media_type=CONTENT_TYPE_LATEST)


def _add_docs(app: FastAPI) -> None:
    page = get_swagger_ui_html(
        openapi_url=str(app.openapi_url),
        title="unclip",
        swagger_js_url=f"{DOCS}/swagger-ui-bundle.js",
        swagger_css_url=f"{DOCS}/swagger-ui.css",
        swagger_favicon_url=f"{DOCS}/favicon.png",
    )
    text = bytes(page.body).decode()
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in re.findall(r"<script>(.*?)</script>", text, re.S)
    ]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    csp = CSP.replace("script-src 'self'", f"script-src 'self' {allowed}")
    csp = csp.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(text, headers={"Content-Security-Policy": csp})


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE, check_dir=False), name="page")
