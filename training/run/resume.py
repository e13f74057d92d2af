"""A run's state: what is saved of it, and how a run goes on from that."""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import gather_object

from unclip.checkpoint import CheckpointError, read_header, save_checkpoint
from unclip.config import ConfigError

from . import changes, saves
from .learner import StageLearner
from .settings import alone
from .sharding import load_whole, load_whole_optimizer, whole

FORMAT = 2  # of progress.pt
WEIGHTS, AVERAGES, OPTIMIZER = "pytorch_model.bin", "ema.bin", "optimizer.bin"


def save(run: StageLearner) -> None:
    """The training state for going on, then the averaged weights for use; each all or nothing."""
    main = run.accelerator.is_main_process
    means = gather_object([run.means.state_dict()])
    weights, averages, optimizer = (
        whole(part.state_dict(), keep=main) for part in (run.raw, run.ema.module, run.optimizer)
    )
    files = {WEIGHTS: weights, AVERAGES: averages, OPTIMIZER: optimizer}

    def write() -> None:
        run.curves.flush()
        saves.write(
            run.out, {**files, saves.PROGRESS: _progress(run, means)}, step=run.step, pictures=run.seen
        )
        _export(run, averages)

    alone(run.accelerator, write)
    run.saved = run.step


def _progress(run: StageLearner, means: list[dict]) -> dict:
    """What else there is to know."""
    return {
        "format": FORMAT,
        "step": run.step,
        "recipe": run.recipe.model_dump(mode="json"),
        "order": run.order,
        "listing": run.listing,
        "clip": run.raw.facts.get("clip"),
        "importance": run.importance and run.importance.state_dict(),
        "means": means,  # of every process
        "skipped": run.guard.total,
    }


def save_best(run: StageLearner) -> None:
    """The averaged weights for use, beside the last ones."""
    averages = whole(run.ema.module.state_dict(), keep=run.accelerator.is_main_process)
    alone(run.accelerator, lambda: _export(run, averages, best_path(run.out, run.raw.config.kind)))


def best_path(out: Path, kind: str) -> Path:
    """Where a run keeps its best weights, if it is told to."""
    return out / f"{kind}-best.safetensors"


def _export(run: StageLearner, averages: dict, path: Path | None = None) -> None:
    config = run.raw.config
    save_checkpoint(
        path or _checkpoint(run),
        averages,
        kind=config.kind,
        config=config.model_dump(mode="json"),
        **{**run.raw.facts, "pictures_seen": run.seen},
    )


def _checkpoint(run: StageLearner) -> Path:
    return run.out / f"{run.raw.config.kind}.safetensors"


def is_saved(run: StageLearner) -> bool:
    """Whether the run as it is lies on the disk, and its checkpoint too."""
    if run.saved != run.step:
        return False
    try:
        return read_header(_checkpoint(run)).get("pictures_seen") == run.seen
    except CheckpointError:
        return False


def resume(run: StageLearner) -> None:
    """Go on from the newest whole save, if there is one and the recipe fits it.

    Raises ``ConfigError`` for a recipe that cannot continue the run (``changes.check``), or a folder with
    trained weights but nothing to go on from; ``CheckpointError`` if no save is whole.
    """
    folder, complaints = saves.agreed(run.out, run.accelerator)
    if folder is None:
        if _checkpoint(run).is_file():
            raise ConfigError(
                f"{_checkpoint(run)} was trained, but there is no save to go on from; "
                "choose another out=, or move it away to begin anew"
            )
        return
    progress = saves.load(folder / saves.PROGRESS)
    if not isinstance(progress, dict) or progress.get("format") != FORMAT:
        raise CheckpointError(f"{folder} was saved by another version; this one goes on from format {FORMAT}")
    old = {**progress["recipe"], "order": progress["order"]}
    changed = changes.check(run.out, old, run.recipe, run.order, run.settings.new_data)
    clip, now = progress.get("clip"), run.raw.facts.get("clip")
    if clip and now and clip != now:
        raise ConfigError(f"{run.out} holds a run with the CLIP {clip}; the recipe's is {now}")
    _load(run, folder, progress)
    for complaint in complaints:
        run.accelerator.print(f"{complaint}: the save before it is used")
    changed |= changes.of_files(progress.get("listing", {}), run.listing)
    if changed:
        run.accelerator.print(f"changed since the last save: {changes.in_words(changed)}")
    run.accelerator.print(f"going on from {run.seen:,} pictures in {run.out}")


def _load(run: StageLearner, folder: Path, progress: dict) -> None:
    load_whole(run.raw, saves.load(folder / WEIGHTS))
    load_whole(run.ema.module, saves.load(folder / AVERAGES))
    load_whole_optimizer(run.optimizer, saves.load(folder / OPTIMIZER))
    s = run.settings
    for group in run.optimizer.param_groups:  # as the recipe is now
        group |= {"betas": (s.beta1, s.beta2), "eps": s.eps, "weight_decay": s.weight_decay}
    if run.importance is not None and progress.get("importance"):
        run.importance.load_state_dict(progress["importance"])
    _load_means(run, progress["means"])
    run.guard.total = progress["skipped"]
    run.step = run.saved = progress["step"]


def _load_means(run: StageLearner, means: list[dict]) -> None:
    """Every process takes up its own sums; if there were more or fewer, one takes all."""
    rank, device = run.accelerator.process_index, run.accelerator.device
    if len(means) == run.accelerator.num_processes:
        run.means.load_state_dict(means[rank], device)
    elif rank == 0:
        full = [part for part in means if part["sums"] is not None]
        if full:
            run.means.load_state_dict({**full[0], "sums": sum(part["sums"] for part in full)}, device)
