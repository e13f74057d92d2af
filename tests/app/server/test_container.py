"""The Dockerfile and the service file, as far as they can be read without running either."""

from __future__ import annotations

import json
import re
import shlex
from configparser import RawConfigParser
from fnmatch import fnmatch
from pathlib import Path

import pytest

from unclip.app.serve import parser, settings_of

ROOT = Path(__file__).parents[3]


def instructions(name: str) -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    return [rest for word, rest in lines if word == name]


def test_what_is_copied_is_there_and_not_ignored():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]
    copied = [source for line in instructions("COPY") for source in line.split()[:-1]]
    assert {"pyproject.toml", "unclip"} <= set(copied) == set(allowed)
    assert all((ROOT / source).exists() for source in copied)
    project = (ROOT / "pyproject.toml").read_text()
    for name in re.findall(r"^(?:readme|license-files) = (.*)$", project, re.M):
        assert {part for part in re.findall(r'"([^"]+)"', name)} <= set(copied)  # the build reads them


def test_it_runs_as_nobody_in_particular_and_its_health_is_the_servers(monkeypatch):
    monkeypatch.setenv("UNCLIP_API_KEY", "a key")
    assert instructions("USER")[-1].isdigit() and int(instructions("USER")[-1]) > 0
    program, verb, *options = json.loads(instructions("ENTRYPOINT")[0])
    assert (program, verb) == ("unclip", "serve")
    args = parser().parse_args(options)
    settings_of(args)
    assert f":{args.port}/health" in instructions("HEALTHCHECK")[0]
    assert instructions("EXPOSE") == [str(args.port)]


def test_without_a_key_the_container_does_not_begin(monkeypatch):
    monkeypatch.delenv("UNCLIP_API_KEY", raising=False)
    _, _, *options = json.loads(instructions("ENTRYPOINT")[0])
    with pytest.raises(ValueError, match="UNCLIP_API_KEY"):
        settings_of(parser().parse_args(options))


def test_the_service_of_the_document_starts_what_there_is():
    document = (ROOT / "docs/serve.md").read_text()
    unit = RawConfigParser()
    unit.read_string(re.search(r"```ini\n(.*?)```", document, re.S)[1])
    program, verb, *options = shlex.split(unit["Service"]["ExecStart"])
    assert fnmatch(program, "*/unclip") and verb == "serve"
    parser().parse_args(options)
    flags = set(re.findall(r"`(--[a-z-]+)", document.split("## Options")[1].split("##")[0]))
    assert flags == {flag for action in parser()._actions for flag in action.option_strings[-1:]} - {"--help"}
