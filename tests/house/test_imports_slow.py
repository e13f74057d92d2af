"""Slow libraries stay out of the way at run time, too, through other people's imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from places import ROOT
from tiny_models import tiny_clip

from unclip.clip import save_clip

PROBE = """
import sys
import unclip.app.command
unclip.app.command.parser()
unclip.known_models()
slow = {"torch", "numpy", "PIL"} & set(sys.modules)
assert not slow, f"the command line alone imports {slow}"
import unclip.pipeline.pipeline
unclip.load("icons", "cpu")
slow = {"open_clip", "transformers", "webdataset", "accelerate", "torchvision", "omegaconf", "xformers",
        "tensorboard", "torch._dynamo"} & set(sys.modules)
assert not slow, f"drawing imports {slow}"
"""


CLIP_PROBE = """
import sys
from unclip.clip import load_clip
load_clip(sys.argv[1]).encode_text(["a dog"])
assert not {"open_clip", "transformers", "torchvision"} & set(sys.modules)
"""


def probe(program: str, *argv: str, cwd: Path) -> None:
    """Run a program on this checkout, and not on a package that is installed besides."""
    program += f"assert unclip.__file__ == {str(ROOT / 'unclip' / '__init__.py')!r}, unclip.__file__\n"
    done = subprocess.run(
        [sys.executable, "-c", f"import unclip\n{program}", *argv],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def test_slow_libraries_stay_out_of_the_way(tmp_path):
    """The law at run time, through other people's imports too: seconds of a newcomer's first command."""
    probe(PROBE, cwd=tmp_path)


def test_a_saved_clip_needs_neither_library(tmp_path):
    save_clip(tiny_clip(), tmp_path)
    probe(CLIP_PROBE, str(tmp_path), cwd=tmp_path)
