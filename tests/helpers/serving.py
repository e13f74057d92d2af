"""A server of a tiny model, in a thread, and clients of it."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai
from PIL import Image

from unclip.app.server.application import Server, application, server_of
from unclip.app.server.house import House
from unclip.app.server.settings import Settings
from unclip.pipeline.pipeline import Pipeline

KEY = "a-key"


@dataclass
class Running:
    """A server that runs."""

    server: Server

    @property
    def port(self) -> int:
        return self.server.servers[0].sockets[0].getsockname()[1]

    @property
    def house(self) -> House:
        return self.server.config.app.state.house

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> openai.OpenAI:
        """The official client, which is told nothing but where the server is."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=KEY, max_retries=0)

    def http(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=60, **options)

    def idle(self) -> None:
        """Wait until nobody waits, and nothing is drawn."""
        until = time.monotonic() + 60
        while self.house.batcher.admitted or self.house.batcher.waiting or self.house.batcher.busy:
            assert time.monotonic() < until
            time.sleep(0.01)


@contextmanager
def serving(model: Pipeline, **settings) -> Iterator[Running]:
    """A server of one model, at any free port; it is ended as SIGTERM ends it."""
    server = server_of(application({model.name: model}, Settings(**settings)), 0)
    with server.aside():
        yield Running(server)


def picture(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def file_of(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()
