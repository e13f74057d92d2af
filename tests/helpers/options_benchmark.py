"""What each argument of ``inference.benchmark`` changes; ``test_options`` holds them to it."""

from __future__ import annotations

from pathlib import Path

from options_inference import MODEL, device, model
from programs import Program

import inference.benchmark

# Tables from here on, laid out by hand.
# fmt: off
BENCHMARK = Program(
    inference.benchmark.main, {"model": ["some"], "batch_sizes": ["--batch-sizes", "1"]},
    {"inference.benchmark.load": MODEL, "inference.benchmark.measure": {"decoder": 1.0},
     "inference.benchmark.table": "", "inference.benchmark.overhead": [(1.0, 1.0)]},
    {"batch_sizes": (["--batch-sizes", "2"], {
        "measure.batch_size": 2, "measure'.batch_size": 2,
        "table.rows": [("fp32", 2, {"decoder": 1.0}), ("bf16", 2, {"decoder": 1.0})]}),
     "batch": (["--batch", "5"], {"overhead.pipeline": MODEL, "overhead.rows": 5, "overhead.batch_size": 1}),
     "seconds": (["--seconds", "0.5"], {"measure.seconds": 0.5, "measure'.seconds": 0.5}),
     **device("load"), **model(["other"])},
    {"measure.pipeline": MODEL, "measure.bf16": False, "measure'.pipeline": MODEL, "measure'.bf16": True})

PICTURES = Program(
    inference.benchmark.main, {"pictures": ["--pictures", "i.png"], "sizes": ["--sizes", "8"]},
    {"inference.benchmark.read_whole": lambda path, most: path,
     "inference.measure.resizing.compare": (1.0, 1.0, 1.0, 40.0)},
    {"pictures": (["--pictures", "o.png"], {"read_whole.path": Path("o.png"),
                                            "compare.files": [Path("o.png")]}),
     "sizes": (["--sizes", "16", "32"], {"compare.size": 16, "compare'.size": 32,
                                         "compare'.files": [Path("i.png")]})},
    {"read_whole.most": 1 << 28})

PARTS = Program(
    inference.benchmark.main, {"parts": ["--parts"]}, {"inference.measure.parts.table": ""},
    {"parts": (["--pictures", "i.png", "--parts"],
               {"said": "inference.benchmark: name either a model, --pictures or --parts", "table": None})},
    {"table": "called"})

PROGRAMS = {"inference/benchmark.py": [BENCHMARK, PICTURES, PARTS]}
