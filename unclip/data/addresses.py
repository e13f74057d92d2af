"""Addresses and files: which of both a name is, is decided once, on what the user typed.

What a listing returns is a file, whatever its name says: a file called ``pipe:rm x;.tar`` in a folder that
was downloaded is opened, and never run.
"""

from __future__ import annotations

import os
import re
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
