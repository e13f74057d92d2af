"""Imported by the process that is forked for tests: a first run pulls in all that is imported late."""

import tempfile
from pathlib import Path

import torch
from runs import fit, forget

torch.set_num_threads(1)  # a fork has one thread, so there must be no others to miss
with tempfile.TemporaryDirectory() as folder:
    fit(Path(folder) / "run", pictures=8)
forget()
