"""A server of OpenAI's Images API, and of a page to draw with in a browser.

    unclip serve                                       # http://127.0.0.1:8000
    UNCLIP_API_KEY=... unclip serve --host 0.0.0.0 --model icons --model models/mine

Programs that speak to OpenAI need OPENAI_BASE_URL=http://127.0.0.1:8000/v1 and any OPENAI_API_KEY, or the
key of the server. SIGTERM and Ctrl-C finish what is being drawn and refuse the rest.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..command_line import Parser, check_numbers
from ..models import DEFAULT_MODEL, load
from . import cli
from .options import add_device, add_memory

if TYPE_CHECKING:
    from ..pipeline.pipeline import Pipeline
    from .server.settings import Settings

NEEDS = 'unclip serve needs FastAPI and uvicorn: pip install "unclip[serve]", or -e ".[serve]" in a checkout'


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="unclip serve", description=__doc__)
    add = parser.add_argument
    add("--model", action="append", help=f"name, folder or file; again for more (default: {DEFAULT_MODEL})")
    add("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1)")
    add("--port", type=int, default=8000, help="0 takes any that is free (default 8000)")
    add(
        "--api-key",
        metavar="KEY",
        help="that clients must send; better in UNCLIP_API_KEY, which no list shows",
    )
    add("--no-key", action="store_true", help="listen beyond this machine without a key, and mean it")
    add(
        "--allow-origin",
        action="append",
        metavar="URL",
        help="another site whose pages may ask; again for more",
    )
    add("--max-queue", type=int, default=64, metavar="N", help="requests that may wait (default 64)")
    add("--max-batch", type=int, default=8, metavar="N", help="pictures drawn together (default 8)")
    add(
        "--resize",
        action="store_true",
        help="scale to sizes that a model does not draw, which are refused else",
    )
    add("--log-prompts", action="store_true", help="log what is asked for, which is not logged else")
    add_device(parser)
    add_memory(parser)
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """What the server is told; ``ValueError`` for what is not safe, or nothing."""
    from .server.settings import LOOPBACK, Settings

    check_numbers(args, port=(0, 65535), max_queue=(1, 100_000), max_batch=(1, 1024))
    key = args.api_key if args.api_key is not None else os.environ.get("UNCLIP_API_KEY")
    if key is not None and (not key.strip() or not key.isprintable()):
        raise ValueError("the API key is empty or holds marks that no header can; choose another")
    if key is not None and args.no_key:
        raise ValueError("there is a key, and --no-key; give one of them")
    if key is None and args.host not in LOOPBACK and not args.no_key:
        raise ValueError(
            f"listening at {args.host} lets others in: set UNCLIP_API_KEY, or give --no-key if all may draw"
        )
    for origin in args.allow_origin or ():
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
            raise ValueError(f"--allow-origin {origin} is no origin; write it as https://example.org")
    return Settings(
        host=args.host,
        key=key,
        max_queue=args.max_queue,
        max_batch=args.max_batch,
        origins=tuple(args.allow_origin or ()),
        resize=args.resize,
        log_prompts=args.log_prompts,
    )


def loaded(args: argparse.Namespace) -> dict[str, Pipeline]:
    """The models by the names that clients use: as they are given, a folder's or file's by its last part."""
    models: dict[str, Pipeline] = {}
    for where in args.model or [DEFAULT_MODEL]:
        name = Path(where).stem if Path(where).suffix == ".safetensors" else Path(where).name
        if name in models:
            raise ValueError(f"two models are called {name}; clients could not tell them apart")
        models[name] = load(where, args.device, args.dtype, args.offload)
    return models


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> None:
        settings = settings_of(args)
        try:
            from .server.application import application, server_of
        except ImportError as error:
            raise ImportError(f"{NEEDS} ({error})") from None
        if not args.log_prompts:  # which warnings hold the ends of
            warnings.simplefilter("ignore")
        logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
        server_of(application(loaded(args), settings), args.port).run()

    return cli.run("unclip serve", work)


if __name__ == "__main__":
    sys.exit(main())
