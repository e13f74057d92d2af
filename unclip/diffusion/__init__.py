"""The mathematics of diffusion. It knows no networks, no pictures and no files."""

from .denoiser import Denoise, Denoiser, Prediction
from .guidance import bind, clamp_x0, classifier_free, gradient, gradient_on_x0
from .losses import loss_terms, vlb_terms
from .noise import Noise, fold
from .samplers import SAMPLERS, Step, ddim, ddpm, dpm_solver_2m
from .schedule import Level, Schedule, evenly_spaced, make_schedule
from .timesteps import uniform

__all__ = [
    "SAMPLERS",
    "Denoise",
    "Denoiser",
    "Level",
    "Noise",
    "Prediction",
    "Schedule",
    "Step",
    "bind",
    "clamp_x0",
    "classifier_free",
    "ddim",
    "ddpm",
    "dpm_solver_2m",
    "evenly_spaced",
    "fold",
    "gradient",
    "gradient_on_x0",
    "loss_terms",
    "make_schedule",
    "uniform",
    "vlb_terms",
]
