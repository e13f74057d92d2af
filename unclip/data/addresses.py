"""Addresses and files: which of both a name is, is decided once, on what the user typed.

What a listing returns is a file, whatever its name says: a file called ``pipe:rm x;.tar`` in a folder that
was downloaded is opened, and never run.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

PROGRAM = "pipe:"  # what follows is run by a shell, and its output read


def is_address(name: str) -> bool:
    """Whether a name is read by a program or over the network, and not from this machine's disks."""
    return "://" in name or name.startswith(PROGRAM)


def checked(address: str) -> str:
    """The address; ``ValueError`` for one with a character that ends a word in a shell.

    Libraries hand addresses on to programs such as curl, and some of their versions do so by a shell.
    """
    odd = sorted(set(re.findall(r"[\s'\"`\\;|<>$(){}]", address)))
    if odd and not address.startswith(PROGRAM):
        raise ValueError(
            f"the address {address!r} holds {' '.join(map(repr, odd))}, which no address does; "
            "write such characters as % and their number in hexadecimal"
        )
    return address


def as_file(path: str) -> str:
    """A path that a listing returned, such that it cannot be read as an address again."""
    return os.path.abspath(path) if is_address(path) else path


def programs_in(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, name) of each name in a recipe, as nested dicts and lists, that runs a program."""
    if isinstance(value, str) and value.strip().startswith(PROGRAM):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from programs_in(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from programs_in(item, key)


def variants(pattern: str) -> int:
    """How many names a pattern of braces ("a-{0..9}", "{a,b}") stands for, without writing them out."""
    try:
        return sum(_variants(re.sub(r"\\.", "", part)) for part in pattern.split("::"))
    except RecursionError:
        return sys.maxsize


def _variants(pattern: str) -> int:
    count = 1
    for part in _groups(pattern):
        if numbers := re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?", part):
            if len(part) > 50:
                return sys.maxsize
            first, last, step = (int(text or 1) for text in numbers.groups())
            count *= abs(last - first) // max(step, 1) + 1
        elif re.fullmatch(r"[a-zA-Z]\.\.[a-zA-Z](\.\.-?\d+)?", part):
            count *= 52  # at most
        else:
            count *= sum(map(_variants, _alternatives(part)))
    return count


def _groups(pattern: str) -> Iterator[str]:
    """What stands in the outermost braces, pair by pair."""
    depth = start = 0
    for place, letter in enumerate(pattern):
        if letter == "{":
            depth, start = depth + 1, start if depth else place + 1
        elif letter == "}" and depth:
            depth -= 1
            if not depth:
                yield pattern[start:place]


def _alternatives(part: str) -> Iterator[str]:
    """The parts between the commas that stand in no further braces."""
    depth = start = 0
    for place, letter in enumerate(part):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and not depth:
            yield part[start:place]
            start = place + 1
    yield part[start:]
