"""The queue: who is drawn together, what a full one answers, who leaves, and how it ends."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from PIL import Image, ImageChops
from serving import picture, serving

import unclip.app.server.queue.batches as batches
from unclip.app.server.queue.jobs import due
from unclip.pipeline.request import wish_of


class Gate:
    """Holds the drawing thread until it is opened; notes the batches that pass."""

    def __init__(self, real):
        self.real, self.open, self.sizes = real, threading.Event(), []
        self.reached = threading.Semaphore(0)

    def __call__(self, pipeline, wishes, timed):
        self.sizes.append([len(wish) for wish in wishes][0])
        self.reached.release()
        assert self.open.wait(60)
        yield from self.real(pipeline, wishes, timed)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(batches.drawn)
    monkeypatch.setattr(batches, "drawn", gate)
    yield gate
    gate.open.set()


@pytest.fixture
def server(pipeline):
    with serving(pipeline, max_queue=4, max_batch=4) as running:
        yield running


def waiting(server, count: int) -> None:
    until = time.monotonic() + 30
    while len(server.house.batcher.waiting) != count:
        assert time.monotonic() < until, len(server.house.batcher.waiting)
        time.sleep(0.01)


def same(a: Image.Image, b: Image.Image) -> bool:
    return max(high for _, high in ImageChops.difference(a, b).getextrema()) <= 1


def test_what_waits_and_agrees_is_drawn_together_and_is_what_it_is_alone(server, pipeline, gate):
    """Unequal prompts, seeds and n; another guidance is another run; n beyond a batch is cut up."""
    asked = [
        ("a cat", 1, 1, {}),
        ("a dog", 2, 2, {}),
        ("a car", 1, 3, {"guidance_scale": 1.0}),
        ("a hat", 2, 4, {}),
    ]

    def ask(prompt, n, seed, more):
        return server.client.images.generate(prompt=prompt, n=n, extra_body={"seed": seed, **more})

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, "first", 1, 0, {})
        assert gate.reached.acquire(timeout=30)
        answers = []
        for number, one in enumerate(asked, 1):
            answers.append(pool.submit(ask, *one))
            waiting(server, number)
        gate.open.set()
        first.result()
        for (prompt, n, seed, more), answer in zip(asked, answers, strict=True):
            expected = pipeline.generate([prompt], n=n, seed=seed, **more)
            drawn = [picture(item.b64_json) for item in answer.result().data]
            assert all(same(*both) for both in zip(drawn, expected, strict=True))
    assert gate.sizes == [1, 4, 1, 1]  # cat, dog, one hat; the car alone, whose turn it is; the other hat


def test_a_full_queue_answers_429_and_says_when_to_come_again(server, gate):
    with ThreadPoolExecutor(8) as pool:
        for count in range(5):
            pool.submit(server.client.images.generate, prompt="a cat")
            if count == 0:
                assert gate.reached.acquire(timeout=30)
        waiting(server, 4)
        with pytest.raises(openai.RateLimitError, match="4 requests are waiting") as raised:
            server.client.images.generate(prompt="a dog")
        assert 1 <= int(raised.value.response.headers["retry-after"]) <= 60
        gate.open.set()
    server.idle()
    assert server.client.images.generate(prompt="a dog").data


def test_places_in_the_queue_are_told(server, gate):
    def follow(number):
        with server.http() as http, http.stream(
            "POST", "/v1/images/generations",
            json={"prompt": "a cat", "stream": True, "guidance_scale": 1.0 + number},
        ) as answer:  # fmt: skip
            events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
        return [event["place"] for event in events if event["type"] == "unclip.queued"], events[-1]["type"]

    with ThreadPoolExecutor(8) as pool:
        told = [pool.submit(follow, 0)]
        assert gate.reached.acquire(timeout=30)
        for number in (1, 2, 3):
            told.append(pool.submit(follow, number))
            waiting(server, number)
        gate.open.set()
        places = [one.result() for one in told]
    assert {end for _, end in places} == {"image_generation.completed"}
    assert [one for one, _ in places] == [[], [1], [2, 1], [3, 2, 1]]


def test_who_goes_away_while_waiting_leaves_the_queue(server, gate):
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(server.client.images.generate, prompt="a cat")
        assert gate.reached.acquire(timeout=30)
        for stream in (False, True):
            with pytest.raises(openai.APITimeoutError):
                list(server.client.with_options(timeout=0.5).images.generate(prompt="a dog", stream=stream))
        waiting(server, 0)
        assert not server.house.batcher.admitted
        gate.open.set()
        first.result()
    assert gate.sizes == [1]


def test_a_batch_that_nobody_waits_for_ends_at_the_next_step(server, monkeypatch):
    steps = []
    monkeypatch.setattr(
        "unclip.app.server.queue.jobs.Show.progress",
        lambda self, *step, real=batches.Show.progress: (
            time.sleep(0.05),
            steps.append(step),
            real(self, *step),
        ),
    )
    client = server.client.with_options(timeout=1.0)
    with pytest.raises(openai.APITimeoutError):
        client.images.generate(prompt="a cat", extra_body={"steps": 500})
    server.idle()
    assert 1 < len(steps) < 100  # of 500
    done = len(steps)
    time.sleep(0.3)
    assert len(steps) == done and server.client.images.generate(prompt="a dog").data


def test_a_fault_of_one_is_not_the_others(server, gate, pipeline, monkeypatch):
    """Pictures that are no numbers end a batch; drawn alone, only the one that made them fails."""
    real = pipeline.decode

    def decode(wish):
        if "a bomb" in wish.texts:
            raise ValueError("the decoder made numbers that are infinite or none")
        return real(wish)

    monkeypatch.setattr(pipeline, "decode", decode)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.client.images.generate, prompt="first")]
        assert gate.reached.acquire(timeout=30)
        asked += [pool.submit(server.client.images.generate, prompt=p) for p in ("a cat", "a bomb", "a dog")]
        waiting(server, 3)
        gate.open.set()
        assert [len(one.result().data) for k, one in enumerate(asked) if k != 2] == [1, 1, 1]
        with pytest.raises(openai.BadRequestError, match="infinite or none"):
            asked[2].result()


def test_a_defect_is_no_traceback(server, pipeline, monkeypatch):
    def decode(wish):
        raise KeyError("/secret/path")

    monkeypatch.setattr(pipeline, "decode", decode)
    with pytest.raises(openai.InternalServerError) as raised:
        server.client.images.generate(prompt="a cat")
    assert "its log says why" in str(raised.value) and "secret" not in raised.value.response.text
    events = server.client.images.generate(prompt="a cat", stream=True)
    with pytest.raises(openai.APIError, match="its log says why"):
        list(events)


def test_an_ending_server_finishes_what_it_draws_and_refuses_the_rest(server, gate):
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(server.client.images.generate, prompt="a cat")
        assert gate.reached.acquire(timeout=30)
        second = pool.submit(server.client.images.generate, prompt="a dog")
        waiting(server, 1)
        server.house.batcher.close_soon()
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            second.result()
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            server.client.images.generate(prompt="a car")
        assert (
            server.http().get("/ready").status_code == 503 and server.http().get("/health").status_code == 200
        )
        gate.open.set()
        assert len(first.result().data) == 1


def test_only_what_shares_everything_agrees(pipeline):
    plain, other = wish_of(pipeline, "a cat"), wish_of(pipeline, "a dog", n=3, seed=4)
    assert batches.agree(plain, other)
    assert not batches.agree(plain, wish_of(pipeline, "a dog", steps=3))
    white = Image.new("L", (64, 64), 255)
    hole = wish_of(pipeline, "a cat", image=Image.new("RGB", (64, 64)), mask=white)
    assert not batches.agree(plain, hole) and not batches.agree(hole, hole)
    assert not batches.agree(plain, wish_of(pipeline, None, image_embed=pipeline.embed_prompt("a cat")))
    both = batches.joined([plain, other])
    assert both.texts == ["a cat", "a dog", "a dog", "a dog"] and both.seeds == [*plain.seeds, *other.seeds]


@pytest.mark.parametrize("total, partials, shown", [
    (16, 0, []), (16, 1, [8]), (16, 3, [4, 8, 12]), (2, 3, [1]), (1, 3, []), (4, 50, [1, 2, 3]),
])  # fmt: skip
def test_partial_pictures_are_spread_evenly(total, partials, shown):
    told = {done: due(done, total, partials) for done in range(1, total + 1)}
    assert [done for done, index in told.items() if index is not None] == shown
    assert [told[done] for done in shown] == list(range(len(shown)))
