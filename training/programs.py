"""The command line that every training program shares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TypeVar

from unclip.config import Config, load_config, to_yaml

C = TypeVar("C", bound=Config)


def program(recipe_class: type[C], description: str, argv: list[str] | None = None) -> C | None:
    """Read ``CONFIG [key=value ...] [--dry-run]``; None after a dry run, which prints the recipe."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a recipe, such as configs/icons/decoder.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="changes to the recipe, such as train.batch_size=32")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    args = parser.parse_intermixed_args(argv)
    recipe = load_config(recipe_class, args.config, args.overrides)
    if args.dry_run:
        print(to_yaml(recipe), end="")
        return None
    return recipe


def run(main: Callable[[], None]) -> None:
    """Call ``main``; a user's mistake ends as one message and exit code 2, without a traceback."""
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
