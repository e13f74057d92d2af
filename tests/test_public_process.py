"""The core against what the public Gaussian diffusion code computed.

UNCLIP_FIXTURES may name another folder whose process/ has files of the same form.
"""

import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from unclip.diffusion import (
    Denoiser,
    Schedule,
    clamp_x0,
    ddim,
    evenly_spaced,
    gradient,
    loss_terms,
    make_schedule,
    vlb_terms,
)
from unclip.diffusion.gaussian import beta, diffuse, log_variance, posterior
from unclip.diffusion.schedule import like

FOLDER = Path(os.environ.get("UNCLIP_FIXTURES", Path(__file__).parent / "fixtures")) / "process"
TABLES = json.loads((FOLDER / "tables.json").read_text())
PREDICTS = {"epsilon": "eps", "start_x": "x0"}
VARIANCE = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}
LOSS_SCALE = {"kl": lambda count: 1, "rescaled_kl": lambda count: count}


def read() -> tuple[dict, dict]:
    """Each case's description, and its tensors."""
    with safe_open(FOLDER / "cases.safetensors", "pt") as file:
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


ROUNDING = 2e-7  # of a KL in float32, which the public code computes as (1 + ...) - 1


each_case = pytest.mark.parametrize("name", CASES)


@each_case
def test_the_process_itself(name):
    case = load(name)
    level_t, level_s, before = case.levels()
    x0, noise = case.inputs["x_start"], case.inputs["noise"]
    x = diffuse(x0, noise, level_t)
    close(x, case.outputs["x_t"])
    mean, _ = posterior(x, x0, level_t, level_s)
    close(mean, case.outputs["posterior_mean"])
    log_var = log_variance(0.0, level_t, level_s, before)
    close(like(log_var, x), case.outputs["posterior_log_variance"])
    chain = torch.tensor(case.steps)
    up = case.schedule.at(chain[:-1]), case.schedule.at(chain[1:])
    betas = beta(*up).flip(0)
    assert ((betas - case.outputs["betas"]).abs() / case.outputs["betas"]).max() < 1e-10


@each_case
def test_the_prediction(name):
    case = load(name)
    level_t, level_s, before = case.levels()
    x = case.outputs["x_t"]
    out = case.denoiser(x, case.t)
    close(like(log_variance(out.frac, level_t, level_s, before), x), case.outputs["log_variance"])
    close(posterior(x, out.x0, level_t, level_s)[0], case.outputs["mean_unclipped"])
    clamped = clamp_x0(case.denoiser, case.schedule)
    x0 = clamped(x, case.t).x0
    close(x0, case.outputs["pred_xstart"])
    close(posterior(x, x0, level_t, level_s)[0], case.outputs["mean"])
    guided = gradient(clamped, case.schedule, lambda *_: case.inputs["guidance_gradient"])
    x0 = guided(x, case.t).x0
    close(posterior(x, x0, level_t, level_s)[0], case.outputs["guided_score_mean"])


@each_case
def test_a_ddim_step(name):
    case = load(name)
    x, previous = case.outputs["x_t"], case.outputs["ddim_previous"]
    denoise = clamp_x0(case.denoiser, case.schedule)
    for i, (t, s) in enumerate(zip(case.t.tolist(), case.s.tolist(), strict=True)):
        steps = list(ddim(denoise_one(denoise, i, x), case.schedule, x[i : i + 1], [t, s]))
        close(steps[-1].x, previous[i : i + 1])


def denoise_one(denoise, i, xs):
    """A denoise for picture i alone; the network of a case answers for the whole batch."""

    def one(x, t):
        out = denoise(xs, t.expand(len(xs)))
        return type(out)(out.x0[i : i + 1], out.eps[i : i + 1])

    return one


@each_case
def test_the_losses(name):
    case = load(name)
    levels, kind, count = case.levels(), case.info["loss"], len(case.steps) - 1
    x0, noise, x = case.inputs["x_start"], case.inputs["noise"], case.outputs["x_t"]
    clamped = clamp_x0(case.denoiser, case.schedule)
    close(vlb_terms(clamped(x, case.t), x0, x, *levels), case.outputs["vlb_bpd"], ROUNDING)
    free = vlb_terms(case.denoiser(x, case.t), x0, x, *levels)
    if kind in LOSS_SCALE:
        scale = LOSS_SCALE[kind](count)
        close(free * scale, case.outputs["loss_loss"], ROUNDING * scale)
    else:
        close(loss_terms(case.denoiser, x0, case.t, noise)["mse"], case.outputs["loss_mse"])
    if "loss_vb" in case.outputs:
        weight = count / 1000 if kind == "rescaled_mse" else 1
        close(free * weight, case.outputs["loss_vb"], ROUNDING)
    if kind == "rescaled_mse" and case.denoiser.variance == "learned":
        terms = loss_terms(case.denoiser, x0, case.t, noise, kind="hybrid")
        close(terms["vlb"], case.outputs["loss_vb"], ROUNDING)
        close(terms["loss"], case.outputs["loss_loss"])


@pytest.mark.parametrize("name", [n for n in TABLES if n.split("|")[-1].isdigit()])
def test_even_step_lists(name):
    timesteps, steps = map(int, name.split("|"))
    if steps > 1:  # a single step of the public code starts at t = 1, which is no sampling
        assert evenly_spaced(timesteps, steps) == [i + 1 for i in TABLES[name]][::-1] + [0]
