"""How programs end: what libraries raise is one line, Ctrl-C is 130, and no flag is abbreviated."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from places import ROOT
from safetensors import SafetensorError, safe_open

import training.programs
from unclip.app import cli
from unclip.command_line import Parser, ended, explained

pytestmark = pytest.mark.attack


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


def real(work) -> Exception:
    """What a library raises when it is really asked for too much, or given rubbish."""
    with pytest.raises(Exception) as raised:
        work()
    return raised.value


def huge() -> None:
    torch.empty(1 << 60)


def rubbish(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "rubbish"
    path.write_bytes(content)
    return path


def bomb(tmp_path: Path) -> None:
    head = b"P5 99999 99999 255\n"
    Image.open(rubbish(tmp_path, head))


def deep() -> None:
    deep()


@pytest.mark.parametrize("work, said", [
    (lambda p: huge(), "not enough memory"),
    (lambda p: bytearray(1 << 62), "not enough memory"),
    (lambda p: safe_open(rubbish(p, b"x" * 99), "pt"), "file of weights is damaged"),
    (lambda p: torch.load(rubbish(p, b"")), "a file ends too early"),
    (lambda p: torch.load(rubbish(p, b"x" * 99)), "something else than tensors"),
    (lambda p: torch.load(rubbish(p, b"PK\x03\x04" + b"x" * 99)), "file of weights is damaged"),
    (lambda p: torch.nn.Linear(1, 1).load_state_dict({}), "weights do not fit"),
    (bomb, "more pixels than are decoded"),
    (lambda p: deep(), "nested too deep"),
    (lambda p: open(p / "nothing"), "No such file"),
])  # fmt: skip
def test_what_libraries_raise_is_one_line_that_says_what_to_do(tmp_path, capsys, work, said):
    error = real(lambda: work(tmp_path))
    assert ended("it", raising(error)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("it: ") and said in err and err.count("\n") == 1 and len(err) < 500


@pytest.mark.parametrize("error, said", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "--batch-size"),
    (SafetensorError("x"), "fetch or save it anew (x)"),
    (RuntimeError("CUDA error: device-side assert triggered"), "--device cpu"),
    (pickle.PicklingError("a lambda"), "a lambda"),
    (ValueError(), "ValueError"),
])  # fmt: skip
def test_and_so_are_those_that_a_small_machine_does_not_raise(error, said):
    assert said in explained(error)


def test_a_full_disk_says_where_and_how_much_is_free(tmp_path, capsys):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "deep" / "a.png"))
    assert ended("it", raising(error)) == 2
    err = capsys.readouterr().err
    assert "a.png could not be written" in err and "MB are free" in err and "make room" in err


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("shapes differ"), AttributeError("x")])
def test_a_defect_of_ours_is_not_hidden(error):
    with pytest.raises(type(error)):
        ended("it", raising(error))


def test_every_runner_ends_alike(capsys):
    assert cli.run("it", raising(KeyboardInterrupt())) == 130 and cli.run("it", lambda: None) == 0
    assert "it: stopped" in capsys.readouterr().err
    for error, code in ((KeyboardInterrupt(), 130), (ValueError("no"), 2)):
        with pytest.raises(SystemExit) as stopped:
            training.programs.run(raising(error))
        assert stopped.value.code == code
    assert training.programs.run(lambda: None) is None


def test_no_flag_is_abbreviated(capsys):
    parser = Parser("it", "what it does")
    parser.add_argument("--overwrite", action="store_true")
    assert parser.parse_args(["--overwrite"]).overwrite
    with pytest.raises(SystemExit):
        parser.parse_args(["--over"])
    assert "unrecognized arguments: --over" in capsys.readouterr().err


def test_there_is_no_other_parser():
    for room in ("unclip", "training", "inference"):
        for path in (ROOT / room).rglob("*.py"):
            if path.name != "command_line.py":
                assert "ArgumentParser(" not in path.read_text(encoding="utf-8"), path


PROBE = """
import sys
import unclip.app.command
try:
    unclip.app.command.main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0
assert not {"torch", "numpy", "PIL"} & set(sys.modules), {"torch", "numpy", "PIL"} & set(sys.modules)
"""


@pytest.mark.parametrize("line", [["--help"], ["batch", "--help"], ["--version"]])
def test_help_is_there_at_once(line, tmp_path):
    """Without the seconds that torch takes."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *line], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert "unclip" in done.stdout
