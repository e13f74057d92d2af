"""What every request passes first, and what every answer says: who may ask from where, for how long."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Refused
from .queue.metrics import Metrics
from .settings import LOOPBACK, Settings

BODY_SECONDS = 60.0  # in which a request's body must have come
SPILLED, SPILL_SECONDS = 64 << 20, 10.0  # of a refused body that is read and thrown away
OPEN = ("/v1/images/files/",)  # under /v1, what needs no key: the names are secrets themselves
KEYED = ("/v1/", "/metrics")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
TOO_LARGE = Refused("the request is larger than what is read: 1 MiB of JSON, 52 MiB of a form", 413).response
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.key = None if settings.key is None else _digest(settings.key)
        self.hosts = {urlsplit(origin).netloc for origin in settings.origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["request_id"] = number = secrets.token_hex(8)
        status = 500
        body = Body(receive)

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400:
                    await body.spill(Headers(scope=scope))
                if status == 413:  # which FastAPI says in words of its own
                    message["headers"] = TOO_LARGE.raw_headers
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = number
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            elif status == 413:
                message["body"] = TOO_LARGE.body
            await send(message)

        try:
            try:
                self._check(scope)
            except Refused as refused:
                await refused.response(scope, receive, sent)
                return
            await self.app(scope, body.receive, sent)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, status).inc()

    def _check(self, scope: Scope) -> None:
        """``Refused`` for strangers: other sites' pages, other names for this machine, wrong keys."""
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.key is None and self.settings.own_machine and not self._ours(host):
            # A name of a stranger's that was made to point here, so that his page may ask (DNS rebinding).
            raise Refused(f"this server does not answer for the host {host!r:.100}", 403)
        if origin is not None and origin not in self.settings.origins:
            if urlsplit(origin).netloc != host:
                raise Refused(
                    f"pages of {origin!r:.100} may not ask here; --allow-origin, given to the server, "
                    "lets them",
                    403,
                )
        keyed = path.startswith(KEYED) and not path.startswith(OPEN) and scope["method"] != "OPTIONS"
        if keyed and self.key is not None:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip()), self.key):
                said = "Incorrect API key provided." if key else "You didn't provide an API key: send "
                said += "" if key else "Authorization: Bearer YOUR_KEY"
                raise Refused(said, 401, headers={"WWW-Authenticate": "Bearer"})

    def _ours(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname or "") if host.isprintable() else ""
        return name in LOOPBACK or host in self.hosts


def _digest(key: str) -> bytes:
    """Of one length, so that comparing says nothing about it."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


class Body:
    """A request's body, which must have come in time; ``Refused`` if it has not."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.until, self.whole = receive, time.monotonic() + BODY_SECONDS, False

    async def receive(self) -> Message:
        if self.whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self.until - time.monotonic())
        except TimeoutError:
            raise Refused(f"the request's body did not come within {BODY_SECONDS:g} seconds", 408) from None
        self.whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def spill(self, headers: Headers) -> None:
        """Pour away what is still to come, for so long: of a connection that is closed before, an answer is
        lost on many clients. Those who wait to be told to send (Expect) are not."""
        left = int(headers.get("content-length", "0") or 0) <= SPILLED and "expect" not in headers
        self.until = min(self.until, time.monotonic() + SPILL_SECONDS)
        count = 0
        with suppress(Refused):
            while left and not self.whole and count < SPILLED:
                count += len((await self.receive()).get("body", b""))
