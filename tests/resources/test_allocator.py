"""Programs keep the memory that they have freed; the library leaves a process as it is."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from places import ROOT

from unclip import command_line
from unclip.resources import allocator

STEPS = """
import resource
from unclip.command_line import ended

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(50 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults(), end=" ")
ended("it", faults)
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize("chosen, kept", [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_a_program_asks_the_system_once_for_large_blocks(chosen, kept):
    """Unless whoever runs it has chosen thresholds; before a program's work begins nothing is changed."""
    environment = {key: value for key, value in os.environ.items() if key not in allocator.CHOSEN} | chosen
    done = subprocess.run(
        [sys.executable, "-c", STEPS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    pages = 4 * (50 << 20) // os.sysconf("SC_PAGESIZE")
    assert before > pages / 1000  # huge pages are fewer
    assert (after < before / 4) == kept


def test_elsewhere_nothing_happens(monkeypatch):
    for name in allocator.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    for opened in (lambda _: object(), len):  # another library; Windows, which opens no None
        monkeypatch.setattr(allocator.ctypes, "CDLL", opened)
        assert allocator.keep_freed_memory() is False
    told = []
    monkeypatch.setattr(command_line, "keep_freed_memory", lambda: told.append(True))
    assert command_line.ended("it", lambda: None) == 0 and told == [True]
