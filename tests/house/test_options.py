"""Every option of every program reaches what uses it, changes nothing else, and defaults to what it says.

A new program or option has no entry in the tables, and fails here until it has one.
"""

from __future__ import annotations

import re
from pathlib import Path

import options_benchmark
import options_inference
import options_serve
import options_training
import options_verbs
import pytest
from PIL import Image
from places import ROOT
from programs import arguments, calls_of, changes

import unclip.app.verbs
from unclip.options import Asked, Options

PROGRAMS = {
    **options_benchmark.PROGRAMS,
    **options_inference.PROGRAMS,
    **options_serve.PROGRAMS,
    **options_training.PROGRAMS,
    **options_verbs.PROGRAMS,
}
CASES = [
    pytest.param(program, case, id=f"{file}-{number}-{case}")
    for file, some in PROGRAMS.items()
    for number, program in enumerate(some)
    for case in program.options
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs run in a folder with the files that the tables name."""
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("a cat\n")
    Path("others.txt").write_text("a dog\na car\n")
    for name in ("i.png", "m.png"):
        Image.new("RGB", (4, 4)).save(name)
    Image.new("RGB", (8, 8)).save("o.png")


def test_every_program_with_a_command_line_has_a_table():
    made = {
        str(path.relative_to(ROOT))
        for room in ("unclip", "training", "inference")
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"(return|=) Parser\(", path.read_text(encoding="utf-8"))
    }
    assert made == PROGRAMS.keys()


@pytest.mark.parametrize("file", PROGRAMS)
def test_every_argument_is_in_the_table(file):
    known = {case.partition(":")[0] for program in PROGRAMS[file] for case in program.options}
    taken = {argument.dest for program in PROGRAMS[file] for argument in arguments(program.main)}
    assert taken == known


def test_the_options_that_python_takes_by_name_are_all_that_there_are():
    assert Asked.__annotations__.keys() == Options.model_fields.keys()


def test_every_verb_has_a_table():
    assert options_verbs.VERBS.keys() == unclip.app.verbs.VERBS.keys()


@pytest.mark.parametrize("program, case", CASES)
def test_an_argument_changes_what_it_should_and_nothing_else(program, case, capsys):
    expected = program.options[case][1]
    found = changes(program, case, capsys)
    assert {key: value for key, value in found.items() if value is not None or key in expected} == expected


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=f"{file}-{number}")
        for file, some in PROGRAMS.items()
        for number, program in enumerate(some)
    ],
)
def test_all_that_a_program_passes_on_is_in_the_table(program, capsys):
    found = calls_of(program, program.base, capsys)
    assert {key: found.get(key) for key in program.besides} == program.besides
    known = set(program.besides).union(*(expected for _, expected in program.options.values()))
    assert not {key: value for key, value in found.items() if value is not None and key not in known}


@pytest.mark.parametrize("file", PROGRAMS)
def test_defaults_are_what_the_help_says(file):
    for argument in (argument for program in PROGRAMS[file] for argument in arguments(program.main)):
        said = re.search(r"\(default (\S+?)[):]", argument.help or "")
        if said and argument.default is not None:
            assert argument.default == (argument.type or str)(said[1])
