"""Programs whose work is only watched: what a command line's words come to, where they are used."""

from __future__ import annotations

import argparse
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass

import pytest
import torch
from PIL import Image

from unclip.config import Config

Words = Sequence[str]
Seen = dict[str, object]  # what functions were given, by "function.parameter"; "function'" is a second call


@dataclass(frozen=True)
class Program:
    """A command, the least that it must be told, and what each of its arguments changes.

    main:    as a module's own.
    base:    the words that all is compared with, by argument.
    watched: real functions by dotted name, and what is answered in their place (or a function of the same).
    options: by argument, words in place of those given, and all that then is another than before. A second
             case of an argument is named "argument: which".
    besides: what the words given come to that no option changes.
    """

    main: Callable[[list[str]], object]
    base: Mapping[str, Words]
    watched: Mapping[str, object]
    options: Mapping[str, tuple[Words, Mapping[str, object]]]
    besides: Mapping[str, object]


class Parser(Exception):
    """Carries the parser that a program made."""


def arguments(main: Callable[[list[str]], object]) -> list[argparse.Action]:
    """All that a program's command line takes, but for what argparse itself answers."""

    def parse(self: argparse.ArgumentParser, *_: object) -> None:
        raise Parser(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parser) as raised:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        main([])
    answered = argparse._HelpAction, argparse._VersionAction
    return [action for action in raised.value.args[0]._actions if not isinstance(action, answered)]


def changes(program: Program, case: str, capsys: pytest.CaptureFixture) -> Seen:
    """What one case's words change of what is given without them; None = it is not there any more."""
    before = calls_of(program, program.base, capsys)
    after = calls_of(program, {**program.base, case.partition(":")[0]: program.options[case][0]}, capsys)
    return {
        key: after.get(key)
        for key in before | after
        if before.get(key) != after.get(key) or type(before.get(key)) is not type(after.get(key))
    }


def calls_of(program: Program, words: Mapping[str, Words], capsys: pytest.CaptureFixture) -> Seen:
    """What the watched functions were given, and under "said" how a mistake ended."""
    seen: Seen = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, answer in program.watched.items():
            patch.setattr(name, watch(name, answer, seen))
        try:
            code = program.main([word for some in words.values() for word in some])
        except (ValueError, SystemExit) as error:
            code, seen["said"] = None, str(error)
    said = capsys.readouterr().err
    return seen | ({"said": said.strip()} if code else {})


def watch(name: str, answer: object, seen: Seen) -> Callable:
    """In the place of a function: notes what it is given, by the names of the real one's parameters."""
    function, parameters = name.rpartition(".")[2], inspect.signature(pkgutil.resolve_name(name)).parameters
    signature, calls = inspect.Signature(list(parameters.values())), []

    def called(*args: object, **kwargs: object) -> object:
        of = function + "'" * len(calls)
        calls.append(of)
        arguments = signature.bind(*args, **kwargs).arguments
        seen.update({} if arguments else {of: "called"})
        for parameter, value in arguments.items():
            if parameters[parameter].kind is inspect.Parameter.VAR_KEYWORD:
                seen.update({f"{of}.{key}": plain(one) for key, one in value.items()})
            elif parameter != "self":
                seen.update(flat(f"{of}.{parameter}", value))
        return answer(*args, **kwargs) if inspect.isfunction(answer) else answer

    return called


def flat(name: str, value: object) -> Seen:
    """A value; of settings, each of them."""
    if isinstance(value, Config):
        return {f"{name}.{key}": one for key, one in value.model_dump().items()}
    if is_dataclass(value):
        return {f"{name}.{one.name}": getattr(value, one.name) for one in fields(value)}
    return {name: plain(value)}


def plain(value: object) -> object:
    """What can be compared: of a picture its file's name, of a tensor its shape."""
    if isinstance(value, Image.Image):
        return os.path.basename(getattr(value, "filename", "")) or value.size
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, Iterator):
        return list(value)
    if type(value) in (list, tuple):
        return type(value)(plain(one) for one in value)
    return "a function" if inspect.isroutine(value) else value
