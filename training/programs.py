"""The command line that every training program shares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate.utils import parse_flag_from_env

from unclip.clip import is_on_hub
from unclip.command_line import Parser, ended
from unclip.config import Config, ConfigError, load_config, to_yaml
from unclip.data.addresses import programs_in
from unclip.resources.devices import default_device, has_fast_bf16

C = TypeVar("C", bound=Config)
STOPPED, INTERRUPTED = 75, 130  # exit codes: EX_TEMPFAIL of sysexits.h, and a shell's for Ctrl-C
# Processes wait for one that saves, draws or makes a pool; one that dies is noticed by their launcher.
PATIENCE = timedelta(hours=12)
CODES = f"""exit status: 0 the run is finished; 2 it cannot go on, and says why; {STOPPED} it was told to
end (SIGTERM, SIGHUP), {INTERRUPTED} it was interrupted (Ctrl-C), before its end: it is saved, and the same
command goes on"""


def program(recipe_class: type[C], description: str, argv: list[str] | None = None) -> C | None:
    """Read ``CONFIG [key=value ...] [--dry-run]``; None after a dry run, which prints the recipe."""
    parser = Parser(description=description, epilog=CODES)
    parser.add_argument("config", help="a recipe, such as configs/icons/decoder.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the recipe, such as train.batch_size=32"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument(
        "--allow-programs",
        action="store_true",
        help="let the recipe run the programs that it names as pipe:COMMAND; they are printed",
    )
    parser.add_argument(
        "--allow-downloads", action="store_true", help="let the recipe fetch the CLIP that it names on a hub"
    )
    args = parser.parse_intermixed_args(argv)
    recipe = load_config(recipe_class, args.config, args.overrides)
    _check_programs(recipe, args.overrides, args.allow_programs)
    if not args.allow_downloads:
        check_downloads(recipe, args.overrides)
    if args.dry_run:
        print(to_yaml(recipe), end="")
        return None
    return recipe


def _check_programs(recipe: Config, overrides: Sequence[str], allowed: bool) -> None:
    """Refuse a recipe that runs a program, unless it is allowed, and then say which.

    What is typed on the command line is the user's own.
    """
    for key, name in programs_in(recipe.model_dump(mode="json")):
        if any(override.partition("=")[0] == key for override in overrides):
            continue
        if not allowed:
            raise ConfigError(
                f"{key} runs a program: {name!r}; a recipe may do so only with --allow-programs"
            )
        print(f"{key} runs {name!r}", file=sys.stderr)


def check_downloads(recipe: Config, overrides: Sequence[str] = ()) -> None:
    """Refuse a recipe that names a CLIP on a hub, where anybody publishes; OpenCLIP's list is fetched.

    What is typed on the command line is the user's own.
    """
    for key in ("clip", "start"):
        source = getattr(recipe, key, None)
        typed = any(override.partition("=")[0] == key for override in overrides)
        if source is not None and not typed and is_on_hub(source):
            raise ConfigError(
                f"{key}: {source} would be fetched from the network; a recipe may do so only with "
                f"--allow-downloads, or type {key}={source}"
            )


def wants_bf16(precision: str) -> bool:
    """Whether a run computes in bfloat16: "bf16", "fp32", or "auto", where the hardware has it.

    Asked before there is an Accelerator, which is told the answer; its state must not be made first,
    since that would settle how processes are joined.
    """
    if precision != "auto":
        return precision == "bf16"
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    return has_fast_bf16(torch.device("cpu") if on_cpu else default_device())


def run(main: Callable[[], int | None]) -> None:
    """Call ``main``, and exit with the code that it returns, if that is one (``CODES``); a mistake ends as
    one message and exit code 2, Ctrl-C as 130, without a traceback.
    """
    code = ended("error", main)
    if code:
        sys.exit(code)
