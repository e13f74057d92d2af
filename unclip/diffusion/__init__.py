"""The mathematics of diffusion. It knows no networks, no pictures and no files.

Left out on purpose, since no published weights use them: networks that predict x_{t-1}, and
networks that predict a free log-variance, in place of one between the two bounds.
"""

from .analytic import x0_variance
from .denoiser import Denoise, Denoiser, Prediction
from .guidance import (
    THRESHOLDS,
    bind,
    clamp_x0,
    classifier_free,
    dynamic_threshold,
    gradient,
    gradient_on_x0,
    static_threshold,
    within,
)
from .likelihood import bits_per_dim, prior_term
from .losses import loss_terms, vlb_terms
from .noise import Noise, fold
from .repaint import repaint
from .samplers import SAMPLERS, Step, ddim, ddpm, dpm_solver_2m, heun, invert
from .schedule import Level, Schedule, evenly_spaced, make_schedule, step_list
from .timesteps import LossSecondMoment, uniform

__all__ = [
    "SAMPLERS",
    "THRESHOLDS",
    "Denoise",
    "Denoiser",
    "Level",
    "LossSecondMoment",
    "Noise",
    "Prediction",
    "Schedule",
    "Step",
    "bind",
    "bits_per_dim",
    "clamp_x0",
    "classifier_free",
    "ddim",
    "ddpm",
    "dpm_solver_2m",
    "dynamic_threshold",
    "evenly_spaced",
    "fold",
    "gradient",
    "gradient_on_x0",
    "heun",
    "invert",
    "loss_terms",
    "make_schedule",
    "prior_term",
    "repaint",
    "static_threshold",
    "step_list",
    "uniform",
    "vlb_terms",
    "within",
    "x0_variance",
]
