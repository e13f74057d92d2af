"""What strangers send: each is refused in words or cut off, and the next request is answered rightly."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from hostile_requests import CUT, REQUESTS, VALUES, asks, chunked, raw_json, varies
from PIL import Image
from serving import Running, file_of, serving

import unclip.app.server.application as application
import unclip.app.server.guard as guard
from unclip.pipeline.pipeline import Pipeline

SECONDS = 0.4  # that this server waits for a head or a body


@pytest.fixture(scope="module")
def server(pipeline: Pipeline) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "BODY_SECONDS", SECONDS)
        patch.setattr(guard, "SPILL_SECONDS", SECONDS)
        patch.setattr(application, "HEAD_SECONDS", SECONDS)
        with serving(pipeline, max_queue=8) as running:
            yield running


def connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body that come before the connection is closed; ``CUT`` for nothing."""
    data = b""
    try:
        while piece := connection.recv(1 << 16):
            data += piece
    except ConnectionError:  # closed while we were still sending
        pass
    head, _, body = data.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else CUT), body


def told(server: Running, request: bytes) -> tuple[int, bytes]:
    with connected(server) as connection:
        try:
            connection.sendall(request)
        except ConnectionError:
            pass
        return answer(connection)


def in_words(body: bytes) -> str:
    """The message of an error in OpenAI's form, which gives nothing away."""
    error = json.JSONDecoder().raw_decode(body.decode())[0]["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"].endswith("_error")
    assert 3 < len(error["message"]) <= 1000 and "Traceback" not in error["message"]
    assert "site-packages" not in error["message"] and "/unclip/" not in error["message"]
    return error["message"]


@pytest.fixture(scope="module")
def right(server: Running) -> bytes:
    return json.loads(told(server, asks(seed=7, steps=1))[1])["data"][0]["b64_json"]


@pytest.fixture(autouse=True)
def none_the_worse(server: Running, right: str, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After each, the next request is answered rightly, no place is held, and nothing of ours failed."""
    yield
    status, body = told(server, asks(seed=7, steps=1))
    assert status == 200 and json.loads(body)["data"][0]["b64_json"] == right
    server.idle()
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR], caplog.text


@pytest.mark.attack
@pytest.mark.parametrize("name", REQUESTS)
def test_each_is_refused_in_words(server, name):
    request, statuses = REQUESTS[name]
    status, body = told(server, request)
    assert status in statuses, (status, body[:300])
    if status >= 400:
        in_words(body)


@pytest.mark.attack
@pytest.mark.parametrize("name", VALUES)
def test_values_that_are_none_are_refused_by_name(server, name):
    for request in VALUES[name]:
        status, body = told(server, request)
        assert status == 400, (status, body[:300], request[:400])
        assert in_words(body)


def test_bombs_cost_no_memory(server):
    before = psutil.Process().memory_info().rss
    for name in REQUESTS:
        if "bomb" in name or "megabyte" in name or "terabyte" in name:
            told(server, REQUESTS[name][0])
    assert psutil.Process().memory_info().rss - before < 64 << 20


@pytest.mark.parametrize("sent, status", [
    (b"", CUT), (b"GET / HT", CUT), (raw_json(b"{}", content_length="100"), 408),
    (varies(b"\x89PNG")[:-30], 408), (chunked(b"5\r\n{"), 408),
])  # fmt: skip
def test_what_comes_too_slowly_is_cut_off(server, sent, status):
    start = time.monotonic()
    with connected(server) as connection:
        connection.sendall(sent)
        got, body = answer(connection)
    assert got == status and time.monotonic() - start < 10
    if status:
        assert "within" in in_words(body)


def test_a_head_that_trickles_is_cut_off(server):
    with connected(server) as connection:
        with pytest.raises(ConnectionError):
            for byte in asks()[:400]:
                connection.sendall(bytes([byte]))
                time.sleep(SECONDS / 20)


def test_a_body_that_trickles_is_cut_off(server):
    request = raw_json(b" " * 4000)
    with connected(server) as connection:
        connection.sendall(request[:-4000])
        with pytest.raises(ConnectionError):
            for _ in range(4000):
                connection.sendall(b" ")
                time.sleep(SECONDS / 20)


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_clients_that_vanish_in_the_middle(server, share):
    """... of a head, of a body, while it is drawn."""
    noise = file_of(Image.effect_noise((64, 64), 50))
    for request in (
        asks(steps=500),
        asks(steps=500, stream=True, partial_images=50),
        varies(noise, steps="500"),
    ):
        with connected(server) as connection:
            connection.sendall(request[: int(share * len(request))])
            if share == 1:
                time.sleep(0.1)


def test_two_hundred_connections_at_once(server):
    """Half say nothing, half ask; those without a place in the queue are told so."""
    idle = [connected(server) for _ in range(100)]
    with ThreadPoolExecutor(100) as pool:
        got = list(pool.map(lambda _: told(server, asks(steps=1)), range(100)))
    assert {status for status, _ in got} <= {200, 429} and got[0][0]
    for status, body in got:
        assert json.loads(body)["data"] if status == 200 else "come again" in in_words(body)
    for connection in idle:
        connection.close()


def test_more_connections_than_are_taken_are_told_so(server, monkeypatch):
    monkeypatch.setattr(application, "CONNECTIONS", 3)
    idle = [connected(server) for _ in range(5)]
    time.sleep(0.05)
    status, body = told(server, asks(steps=1))
    assert status == 503 and in_words(body)
    for connection in idle:
        connection.close()
    time.sleep(0.1)


def test_requests_behind_a_refused_one_are_not_smuggled(server):
    behind = asks(steps=1)
    two = (
        raw_json(b"{}", connection="keep-alive").replace(
            b"\r\n\r\n{}", b"\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        + behind
    )
    with connected(server) as connection:
        connection.sendall(two + b"0\r\n\r\n" + asks(steps=1))
        status, body = answer(connection)
    assert status in (CUT, 400) and b"b64_json" not in body
