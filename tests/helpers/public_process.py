"""What the public Gaussian diffusion code computed, case by case, and our process of each."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass

import torch
from places import fixtures
from safetensors import safe_open

from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.schedule import Schedule, make_schedule

(FILE,) = fixtures("process/tables.json")
TABLES = json.loads(FILE.read_text())
PREDICTS = {"epsilon": "eps", "start_x": "x0"}
VARIANCE = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}
ROUNDING = 2e-7  # of a KL in float32, which the public code computes as (1 + ...) - 1


def read() -> tuple[dict, dict]:
    """Each case's description, and its tensors."""
    with safe_open(FILE.with_name("cases.safetensors"), "pt") as file:
        cases, tensors = json.loads(file.metadata()["cases"]), defaultdict(dict)
        for key in file.keys():
            name, tensor = key.split("/")
            tensors[name][tensor] = file.get_tensor(key)
    return cases, tensors


CASES, TENSORS = read()


@dataclass
class Case:
    info: dict  # the case's schedule, steps, prediction, variance, loss and respacing
    inputs: dict
    outputs: dict
    schedule: Schedule
    denoiser: Denoiser
    steps: list[int]  # the whole descending chain
    t: torch.Tensor  # [N], with its neighbours in the chain:
    s: torch.Tensor
    before: torch.Tensor

    def levels(self):
        return self.schedule.at(self.t), self.schedule.at(self.s), self.schedule.at(self.before)


def load(name: str) -> Case:
    info = CASES[name]
    inputs, outputs = (
        {key.removeprefix(side): x for key, x in TENSORS[name].items() if key.startswith(side)}
        for side in ("inputs.", "outputs.")
    )
    schedule = make_schedule(info["schedule"], info["steps"])
    denoiser = Denoiser(
        lambda x, t: inputs["model_output"].to(x),
        schedule,
        PREDICTS[info["predicts"]],
        VARIANCE[info["variance"]],
    )
    ours = outputs["timestep_map"] + 1  # their 0 is one step of noise
    index = inputs["t"]
    t = ours[index]
    s = torch.where(index > 0, ours[(index - 1).clamp(min=0)], 0)
    before = ours[(index + 1).clamp(max=len(ours) - 1)]
    return Case(info, inputs, outputs, schedule, denoiser, [*ours.tolist()[::-1], 0], t, s, before)


def close(ours, theirs, rounding=0.0):
    """Equal, in every picture, to 1e-5 of its largest value."""
    error, scale = (x.abs().reshape(len(theirs), -1).amax(1) for x in (ours - theirs, theirs))
    assert (error <= 1e-5 * scale + rounding).all()
