"""Recipes and network shapes: frozen, validated, and the same in YAML, JSON and on a command line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .files import impostor, start_of


class ConfigError(ValueError):
    """A recipe that cannot be used; the message names the file and every wrong key."""


# Numbers of configurations, which strangers' files declare: none so large that looking takes the memory.
Width = Annotated[int, Field(ge=1, le=1 << 16)]  # channels, dimensions of an embedding, tokens of a text
Depth = Annotated[int, Field(ge=1, le=512)]  # layers or blocks in a row, heads side by side
Side = Annotated[int, Field(ge=1, le=1 << 14)]  # pixels
Rows = Annotated[int, Field(ge=1, le=1 << 24)]  # of a table: classes, tokens, things remembered
Timesteps = Annotated[int, Field(ge=1, le=100_000)]
Count = Annotated[int, Field(ge=1, le=10**12)]  # of pictures or samples, over a run
CountOrNone = Annotated[int, Field(ge=0, le=10**12)]
Together = Annotated[int, Field(ge=1, le=1 << 20)]  # pictures, steps, ... that are held or done at once
Chance = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=1e4)]  # what something is multiplied by, or its strength

MOST_ERRORS = 20  # that one message lists


class Config(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


C = TypeVar("C", bound=Config)


def parse_config(cls: type[C], values: Any, source: str = "config") -> C:
    """Validate ``values`` as ``cls``; raise ``ConfigError`` that lists the wrong keys."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        lines = []
        for item in errors[:MOST_ERRORS]:
            key = ".".join(str(part)[:80] for part in item["loc"]) or "(top level)"
            message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
            lines.append(f"  {key}: {message}")
        if len(errors) > MOST_ERRORS:
            lines.append(f"  and {len(errors) - MOST_ERRORS} more")
        raise ConfigError(f"{source} is not a valid {cls.__name__}:\n" + "\n".join(lines)) from None


def load_config(cls: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML recipe and apply ``key=value`` overrides (dots reach inside: ``net.channels=64``).

    Relative paths are looked up from where the program runs; ~/ is the user's own folder.

    Raises ``ConfigError`` for a missing file, bad YAML, a malformed override or an unknown key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(path)
    if not path.exists():
        raise ConfigError(f"there is no recipe at {path}{looked_up(path)}")
    try:
        reason = impostor(start_of(path))
    except ValueError as error:  # no regular file
        raise ConfigError(str(error)) from None
    if reason:
        raise ConfigError(f"{path} is no recipe: {reason}")
    for item in overrides:
        if "=" not in item:
            raise ConfigError(f"'{item}' is not key=value")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        asked = re.search(r"\$\{[^}]*:[^}]*\}", str(OmegaConf.to_container(merged, resolve=False)))
        if asked:  # such as the environment, in which there are secrets
            raise ValueError(f"it asks for {asked[0]}; a recipe may refer to its own keys alone")
        values = at_home(OmegaConf.to_container(merged, resolve=True))
    except (YAMLError, OmegaConfBaseException, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return parse_config(cls, values, source=str(path))


def at_home(value: object) -> object:
    """Values of a recipe whose paths that begin with ``~/`` lie in the home folder, as a shell has it.

    ``ValueError`` for the home of somebody who is not known here, and for a path that begins with a variable
    of the environment, of which a recipe sees nothing: a folder of such a name is not what is meant.
    """
    if isinstance(value, dict):
        return {key: at_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [at_home(item) for item in value]
    if not isinstance(value, str) or not re.match(r"~$|~[\w.-]*/|\$\w+(/|$)", value):
        return value
    path = os.path.expanduser(value)
    if path == value:
        raise ValueError(f"{value} begins with what is not known here; write the whole path, or ~/")
    return path


def looked_up(path: str | Path) -> str:
    """For the message that something is not there: from where a relative path was looked up."""
    return "" if Path(path).is_absolute() else f" (looked up from {Path.cwd()})"


def to_yaml(config: Config) -> str:
    """The resolved recipe as YAML, fit to be read back by ``load_config``."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def differences(old: dict, new: dict, prefix: str = "") -> dict[str, str]:
    """Where two dumped configurations differ, by key: {"net.channels": "64 -> 32", ...}."""
    changes: dict[str, str] = {}
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changes[f"{prefix}{key}"] = f"{a} -> {b}"
    return changes
