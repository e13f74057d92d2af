"""What the tests of training look at after a run."""

import json
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from unclip.checkpoint import load_checkpoint


def forget() -> None:
    """Accelerate keeps its state for a whole process; the next run is to be one of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def files(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def raw(out: Path) -> dict[str, torch.Tensor]:
    """The weights themselves, not their average."""
    return torch.load(out / "state" / "pytorch_model.bin", weights_only=True)


def same(a: Path, b: Path, kind: str) -> bool:
    """Whether two runs have the same averaged and the same raw weights, bit for bit."""
    pairs = [(load_checkpoint(out / f"{kind}.safetensors")[0], raw(out)) for out in (a, b)]
    return all(one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
               for one, other in zip(*pairs, strict=True))
