"""Many clients of a server at once, some of whom go away: how long they wait, and what they leave.

    python -m inference.soak icons
    python -m inference.soak icons --requests 64 --leave 0 --steps 2

Prints pictures a second beside those of ``pipeline.generate``, which draws the same ones in this process,
half of them before and half after. Every answer is compared with that. Needs the extra ``serve``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import io
import logging
import random
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from statistics import quantiles

import psutil
import requests
import torch
from PIL import Image, ImageChops

from unclip import load
from unclip.app import cli
from unclip.app.options import add_device
from unclip.app.server.application import Server, application, server_of
from unclip.app.server.settings import Settings
from unclip.command_line import Parser, check_numbers
from unclip.pipeline.pipeline import Pipeline

THINGS = "goldfish apple rocket bicycle house tree cat dog car boat cup key star moon flower hat".split()
LONGEST = 600.0  # seconds that a client waits
SEED = 0  # of all pictures; each has words of its own


@dataclass(frozen=True)
class Visit:
    """A request of one client."""

    prompt: str
    stream: bool
    leaves: float | None = None  # after so many of the seconds that answers take lately; None = it stays


@dataclass(frozen=True)
class Held:
    """What the process holds: files and sockets, tasks, connections, requests, resident bytes."""

    files: int
    tasks: int
    connections: int
    requests: int
    memory: int

    def __sub__(self, other: Held) -> Held:
        return Held(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Soaked:
    """What came of many visits."""

    seconds: list[float]  # of each answer
    answers: dict[str, bytes]  # the files, by prompt
    took: float  # seconds, all together
    cpu: float  # seconds of processors, the clients' included
    left: Held  # what they left when all had gone


def visits(count: int, leave: float) -> list[Visit]:
    """The same every time: every third one watches, and a share of ``leave`` goes away."""
    draw = random.Random(0)
    words = [f"a {THINGS[k % len(THINGS)]}, number {k}" for k in range(count)]
    leaves = [draw.uniform(0, 1.5) if draw.random() < leave else None for _ in words]
    return [Visit(word, k % 3 == 0, leaves[k]) for k, word in enumerate(words)]


class Clients:
    """So many clients of one server, each of which asks again as soon as it has its answer."""

    def __init__(self, server: Server, port: int, count: int, options: Mapping[str, int]) -> None:
        self.server, self.count, self.options = server, count, options
        self.address = f"http://127.0.0.1:{port}/v1/images/generations"
        self.usual = 1.0  # seconds that answers take lately

    def soak(self, some: Sequence[Visit]) -> Soaked:
        before, start, cpu = self.held(), time.monotonic(), time.process_time()
        with ThreadPoolExecutor(self.count) as pool:
            answers = list(pool.map(self.visit, some))
        took, cpu = time.monotonic() - start, time.process_time() - cpu
        there = {visit.prompt: one for visit, one in zip(some, answers, strict=True) if one is not None}
        files = {prompt: file for prompt, (_, file) in there.items()}
        return Soaked([seconds for seconds, _ in there.values()], files, took, cpu, self.held() - before)

    def visit(self, visit: Visit) -> tuple[float, bytes] | None:
        """Seconds and the picture's file; None if it went away."""
        asked = {"prompt": visit.prompt, "seed": SEED, "stream": visit.stream, "partial_images": 2}
        stays = LONGEST if visit.leaves is None else 0.01 + visit.leaves * self.usual
        start = time.monotonic()
        try:
            with requests.post(
                self.address, json={**asked, **self.options}, stream=True, timeout=(LONGEST, stays)
            ) as answer:
                text = b""
                for piece in answer.iter_content(None):
                    text += piece
                    if time.monotonic() - start > stays:
                        return None
        except requests.RequestException:
            if visit.leaves is None:
                raise
            return None
        if answer.status_code != 200:
            raise RuntimeError(f"the server answered {answer.status_code}: {text[:300]!r}")
        took = time.monotonic() - start
        self.usual += 0.1 * (took - self.usual)
        last = text.rpartition(b'"b64_json":"')[2]
        return took, base64.b64decode(last.partition(b'"')[0], validate=True)

    def held(self) -> Held:
        """... as soon as nobody is connected and nothing is drawn, or after a while."""
        batcher, connections = (
            self.server.config.app.state.house.batcher,
            self.server.server_state.connections,
        )
        until = time.monotonic() + 60
        while (batcher.admitted or batcher.busy or connections) and time.monotonic() < until:
            time.sleep(0.02)
        gc.collect()
        tasks = asyncio.run_coroutine_threadsafe(_tasks(), batcher.loop).result()
        process, waiting = psutil.Process(), len(batcher.admitted) + len(batcher.waiting)
        return Held(process.num_fds(), tasks, len(connections), waiting, process.memory_info().rss)


async def _tasks() -> int:
    return len(asyncio.all_tasks())


def drawn_alone(
    pipeline: Pipeline, prompts: Sequence[str], batch: int, options: Mapping[str, int]
) -> tuple[tuple[float, float], dict[str, Image.Image]]:
    """Seconds, by the clock and of processors, and the pictures of these prompts, so many at a time."""
    start, cpu, drawn = time.monotonic(), time.process_time(), {}
    for k in range(0, len(prompts), batch):
        some = list(prompts[k : k + batch])
        drawn |= zip(some, pipeline.generate(some, seed=SEED, **options), strict=True)
    return (time.monotonic() - start, time.process_time() - cpu), drawn


def differ(file: bytes, picture: Image.Image) -> bool:
    """Whether they are more than 1 of 255 apart, which what is drawn among others may be."""
    difference = ImageChops.difference(Image.open(io.BytesIO(file)).convert("RGB"), picture)
    return max(high for _, high in difference.getextrema()) > 1


def measure(
    pipeline: Pipeline, count: int, clients: int, leave: float, batch: int, options: Mapping[str, int]
) -> tuple[Soaked, tuple[float, float], int]:
    """What came of it, the seconds of the same without a server, and how many answers differ from those."""
    many = visits(count, leave)
    prompts = [visit.prompt for visit in many]
    drawn_alone(pipeline, ["warm"] * batch, batch, options)
    seconds, drawn = drawn_alone(pipeline, prompts[: count // 2], batch, options)
    server = server_of(application({pipeline.name: pipeline}, Settings(max_batch=batch, max_queue=4096)), 0)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    with server.aside() as port:
        asking = Clients(server, port, clients, options)
        asking.soak([Visit(f"warm {k}", k % 3 == 0) for k in range(2 * clients)])
        soaked = asking.soak(many)
    more, rest = drawn_alone(pipeline, prompts[count // 2 :], batch, options)
    drawn |= rest
    wrong = sum(differ(file, drawn[prompt]) for prompt, file in soaked.answers.items())
    return soaked, (seconds[0] + more[0], seconds[1] + more[1]), wrong


def table(soaked: Soaked, count: int, alone: tuple[float, float], wrong: int) -> str:
    """What came of ``count`` visits as Markdown; alone: seconds of the same pictures without a server."""
    cuts, many, left = quantiles(soaked.seconds, n=100, method="inclusive"), len(soaked.answers), soaked.left
    server = f"{cuts[49]:.2f} | {cuts[98]:.2f} | {many / soaked.took:.2f} | {soaked.cpu / many:.3f}"
    return "\n".join([
        "| | pictures | p50 (s) | p99 (s) | pictures a second | CPU seconds a picture |",
        "|---|--:|--:|--:|--:|--:|",
        f"| the server | {many} | {server} |",
        f"| `pipeline.generate` | {count} | | | {count / alone[0]:.2f} | {alone[1] / count:.3f} |",
        "",
        f"{count - many} went away. {wrong} answers are others than what is drawn alone. "
        f"Left behind: {left.files} files, {left.tasks} tasks, {left.connections} connections, "
        f"{left.requests} requests, {left.memory / 2**20:.1f} MiB.",
    ])  # fmt: skip


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m inference.soak", description=__doc__)
    add = parser.add_argument
    add("model", help="a model's name or folder")
    add("--requests", type=int, default=500, metavar="N", help="all together (default 500)")
    add("--clients", type=int, default=16, metavar="N", help="at a time (default 16)")
    add("--leave", type=float, default=0.2, metavar="SHARE", help="of them go away (default 0.2)")
    add("--max-batch", type=int, default=8, metavar="N", help="pictures drawn together (default 8)")
    add("--steps", type=int, metavar="N", help="of the decoder (default: the model's)")
    add_device(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> None:
        check_numbers(args, requests=(2, 1_000_000), clients=(1, 256), leave=(0, 0.9), max_batch=(1, 1024))
        options = {} if args.steps is None else {"steps": args.steps}
        pipeline = load(args.model, args.device)
        soaked, alone, wrong = measure(
            pipeline, args.requests, args.clients, args.leave, args.max_batch, options
        )
        where = f"{pipeline.device}, {torch.get_num_threads()} threads"
        print(f"{pipeline.name} on {where}\n\n{table(soaked, args.requests, alone, wrong)}")

    return cli.run("inference.soak", work)


if __name__ == "__main__":
    sys.exit(main())
