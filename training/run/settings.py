"""How a stage is trained, and the processes that train it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from accelerate import Accelerator
from accelerate.utils import (
    InitProcessGroupKwargs,
    KwargsHandler,
    ProjectConfiguration,
    broadcast_object_list,
    parse_flag_from_env,
)
from pydantic import Field

from unclip.config import Config, ConfigError, Count, CountOrNone, Factor, Together
from unclip.files import make_folder
from unclip.resources.devices import default_device

from ..programs import PATIENCE, wants_bf16

T = TypeVar("T")


class Training(Config):
    """How a stage is trained. Counts are in pictures, over all processes."""

    out: str  # folder of the run; on a disk that all machines share
    pictures: Count  # length of the run
    batch_size: Together = 64  # pictures an optimiser step, over all processes
    accumulate: Together = 1  # forward passes an optimiser step
    learning_rate: float = Field(3e-4, gt=0, le=1e6)  # Adam's, at its highest
    warmup: CountOrNone = 5_000  # pictures of linear warm-up
    decay: Literal["cosine", "none"] = "cosine"  # to zero at the end, or not at all
    weight_decay: Factor = 0.01
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, gt=0, lt=1)
    eps: float = Field(1e-8, gt=0, le=1)  # Adam's, against division by zero
    clip_norm: float = Field(1.0, gt=0, le=1e12)  # largest norm of the gradient
    ema_half_life: Count = 50_000  # pictures
    timestep_sampler: Literal["uniform", "loss_second_moment"] = "uniform"  # which noise levels are learnt
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware has it
    checkpointing: bool = False  # less memory: the backward pass computes a third more
    compile: bool = False  # torch.compile the network
    shard: bool = False  # share the weights out among processes (FSDP), not copy them
    seed: int = 0
    max_skipped: Together = 10  # steps in a row with a loss that is no number, then it stops
    new_data: bool = False  # go on though the data or the seed is not what it was
    trackers: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]  # who draws the curves
    log_every: Count = 2_000  # pictures between points of a curve
    validate_every: Count = 50_000
    sample_every: Count = 100_000
    save_every: Count = 50_000
    keep: Literal["best", "last"] = "last"  # best: the averages with the least validation error, too
    keep_by: str | None = None  # of validation, such as mse; None: the first figure that there is
    patience: int = Field(0, ge=0, le=1_000_000)  # validations without gain, then it ends; 0: never


def micro_batch(settings: Training, accelerator: Accelerator) -> int:
    """Pictures a process handles in one forward pass."""
    parts = accelerator.num_processes * settings.accumulate
    if settings.batch_size % parts:
        raise ConfigError(
            f"batch_size {settings.batch_size} does not divide by "
            f"{accelerator.num_processes} processes x accumulate {settings.accumulate}"
        )
    return settings.batch_size // parts


def make_accelerator(settings: Training) -> Accelerator:
    """Device, precision, distribution and trackers, as the recipe and ``accelerate launch`` say.

    ``accelerate launch --use_fsdp`` asks for what ``shard`` does. Raises ``ConfigError`` for a batch that
    cannot be shared out, and for a tracker that is not installed.
    """
    out = Path(settings.out)
    for name in settings.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"train.trackers names {name}, which is not installed: pip install {name}, or leave it out"
            )
    make_folder(out)  # fails now if it cannot be written
    shard = settings.shard or _launched_with_fsdp()
    accelerator = joined(
        settings.precision,
        log_with=list(settings.trackers) or None,
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / "curves")),
    )
    accelerator.shards = shard and accelerator.num_processes > 1  # read by the loop
    micro_batch(settings, accelerator)  # fails now if the batch cannot be shared out
    return accelerator


def joined(precision: str, handlers: Sequence[KwargsHandler] = (), **options: object) -> Accelerator:
    """An ``Accelerator`` of all the processes that a launcher started, on CPUs too (gloo).

    Without a GPU accelerate takes each process for the only one unless it is told to use the CPU; all of them
    would then train the same run into the same folder. Raises ``ConfigError`` where it still does.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and default_device().type in ("cpu", "mps"):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    accelerator = Accelerator(
        mixed_precision="bf16" if wants_bf16(precision) else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE), *handlers],
        **options,
    )
    if accelerator.num_processes < started:
        raise ConfigError(
            f"the launcher started {started} processes, which do not find each other (accelerate sees "
            f"{accelerator.num_processes}): start them with torchrun or accelerate launch"
        )
    return accelerator


def alone(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """What ``work`` returns in the main process, for all processes; and a mistake it raises, all raise."""
    outcome: list = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except (ValueError, OSError) as error:
            outcome[1] = error
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


def _launched_with_fsdp() -> bool:
    """Whether the launcher asks for FSDP. Accelerate is told no, since the loop does it by itself: alike on
    GPUs and CPUs, and with states that any number of processes can go on from.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise ConfigError("weights cannot be kept on the CPU here; launch without fsdp_offload_params")
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    return True
