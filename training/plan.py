"""What a recipe will cost, before anything is trained: parameters, memory a GPU, arithmetic and time.

    python -m training.plan configs/paper/prior.yaml --gpus 64
    python -m training.plan configs/shards/decoder.yaml train.batch_size=512 --gpus 8 --mfu 0.35 --json
    python -m training.plan configs/icons/chain.yaml --gpus 1 --peak-flops 1e12

Nothing is computed: the networks are built on the meta device and one training step is walked through
there, so a plan takes seconds on any machine. Memory is what the step's tensors take; an allocator's gaps,
the workspaces of kernels and CUDA itself come besides. MFU (model FLOPs utilisation) is the share of a GPU's
peak that useful arithmetic reaches; 0.3 to 0.5 is usual for large networks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict

from unclip.command_line import Parser
from unclip.config import Config, ConfigError, load_config

from .clip.recipe import ClipRecipe
from .cost.clip import clip_costs
from .cost.cost import Cost
from .cost.stages import stage_cost
from .programs import run
from .recipes import RECIPES, Chain, recipe_of


def costs_of(recipe: Config, gpus: int, clips: Mapping[str, dict | str] | None = None) -> list[Cost]:
    """The cost of each optimisation in a recipe.

    clips: ``model`` by folder, of CLIPs that are yet to be trained there.
    Raises ``ConfigError`` if the batch cannot be shared out.
    """
    if isinstance(recipe, ClipRecipe):
        return clip_costs(recipe, gpus)
    return [stage_cost(recipe, gpus, clips or {})]


A100 = 312e12  # FLOPs a second in bfloat16
GIB, MIB, DAY = 2**30, 2**20, 86_400


def read_recipe(path: str, overrides: list[str]) -> Config:
    """The recipe in a file, of whichever program it is; ``ConfigError`` of the one it comes nearest to."""
    errors = []
    for kind in dict.fromkeys([*RECIPES.values(), Chain]):
        try:
            return load_config(kind, path, overrides)
        except ConfigError as error:
            errors.append(error)
    raise min(errors, key=lambda error: str(error).count("\n"))


def plan(recipe: Config, gpus: int, mfu: float, peak_flops: float) -> list[dict]:
    """The plan of every optimisation in a recipe, or in the recipes of a chain, ready for JSON."""
    recipes = [recipe_of(link) for link in recipe.stages] if isinstance(recipe, Chain) else [recipe]
    clips = {part.out: part.model for part in recipes if isinstance(part, ClipRecipe) and part.model}
    return [_summary(cost, gpus, mfu, peak_flops) for part in recipes for cost in costs_of(part, gpus, clips)]


def _summary(cost: Cost, gpus: int, mfu: float, peak_flops: float) -> dict:
    model = cost.forward + cost.backward
    rate = gpus * peak_flops * mfu
    seconds = cost.pictures * (model + cost.frozen) / rate
    ways = ("ddp", "fsdp") if cost.can_shard and gpus > 1 else ("ddp",)
    memory = {name: _memory(cost, gpus, name) for name in ways}
    how = "fsdp" if cost.shard and gpus > 1 else "ddp"
    return {
        **asdict(cost),
        "gpus": gpus,
        "batch_a_gpu": cost.micro_batch,
        "memory": memory,
        "needed": memory[how]["total_checkpointed" if cost.checkpointing else "total"],
        "flops_a_picture": model + cost.frozen,
        "mfu": mfu,
        "peak_flops": peak_flops,
        "seconds": seconds,
        "seconds_checkpointed": seconds + cost.pictures * cost.forward / rate,
        "gpu_hours": seconds * gpus / 3600,
    }


def _memory(cost: Cost, gpus: int, how: str) -> dict[str, int]:
    """Bytes on one GPU. DDP holds everything on each; FSDP (Zhao et al. 2023) a share of what is kept,
    and gathers the weights of two units at a time: the one at work, and the next.
    """
    share = 1 if how == "ddp" else gpus
    held = {
        "weights": cost.weights // share,
        "gradients": cost.weights // share,
        "moments": 2 * cost.weights // share,
        "ema": cost.ema // share,
        "frozen": cost.frozen_weights,
    }
    if how == "ddp":
        held |= {"buckets": cost.weights if gpus > 1 else 0, "copies": cost.copies}
    else:
        held["gathered"] = cost.outside + 3 * cost.block  # and one unit's gradients
    total = sum(held.values())
    held |= {"activations": cost.activations, "activations_checkpointed": cost.activations_checkpointed}
    return {
        **held,
        "total": total + cost.activations,
        "total_checkpointed": total + cost.activations_checkpointed,
    }


ROWS = {
    "weights": "weights", "gradients": "gradients", "moments": "Adam's two moments", "ema": "moving average",
    "frozen": "frozen CLIP", "buckets": "buckets of DDP", "copies": "weights in bfloat16",
    "gathered": "gathered by FSDP", "activations": "activations", "total": "all",
    "activations_checkpointed": "activations, checkpointed", "total_checkpointed": "all, checkpointed",
}  # fmt: skip


def table(part: dict) -> str:
    """One optimisation's plan, to read."""
    steps = -(-part["pictures"] // part["batch_size"])
    lines = [
        f"{part['name']}: {part['parameters']:,} parameters",
        f"{part['pictures']:,} pictures in {steps:,} steps of {part['batch_size']:,} = {part['gpus']} GPUs x "
        f"{part['accumulate']} x {part['batch_a_gpu']}",
        "",
        *_memory_table(part["memory"]),
        f"as the recipe says ({'FSDP' if part['shard'] else 'DDP'}, "
        f"{'with' if part['checkpointing'] else 'no'} checkpointing): {part['needed'] / GIB:.2f} GiB a GPU",
        "",
        f"FLOPs a picture: {part['forward']:.3g} forward, {part['backward']:.3g} backward, "
        f"{part['frozen']:.3g} in frozen CLIP",
        f"time at {part['mfu']:.0%} of {part['peak_flops']:.3g} FLOP/s a GPU: {_time(part['seconds'])}, or "
        f"{_time(part['seconds_checkpointed'])} with checkpointing ({part['gpu_hours']:,.1f} GPU hours)",
        *(f"note: {note}" for note in part["notes"]),
    ]
    return "\n".join(lines)


def _memory_table(memory: dict[str, dict[str, int]]) -> list[str]:
    unit, name = (GIB, "GiB") if memory["ddp"]["total"] >= GIB else (MIB, "MiB")
    lines = [f"{f'memory a GPU, {name}':28}" + "".join(f"{how.upper():>10}" for how in memory)]
    for key, title in ROWS.items():
        counts = [sizes.get(key) for sizes in memory.values()]
        if any(counts):
            cells = ("" if count is None else f"{count / unit:.2f}" for count in counts)
            lines.append(f"  {title:26}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def _time(seconds: float) -> str:
    units = ((DAY, "days"), (3600, "hours"), (60, "minutes"))
    size, name = next((unit for unit in units if seconds >= 2 * unit[0]), (1, "seconds"))
    return f"{seconds / size:,.1f} {name}"


def parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("config", help="a recipe of any training program, or a chain of them")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("--gpus", type=int, default=1, help="how many there are, over all machines (1)")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of their peak that is reached (0.4)")
    parser.add_argument(
        "--peak-flops",
        type=float,
        default=A100,
        help="of one GPU, a second, at the recipe's precision (an A100's in bfloat16: 312e12)",
    )
    parser.add_argument("--json", action="store_true", help="for programs: bytes, FLOPs and seconds")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_intermixed_args(argv)
    if args.gpus < 1 or not 0 < args.mfu <= 1 or not args.peak_flops > 0:
        raise ConfigError("--gpus counts from 1, --mfu is a share between 0 and 1, --peak-flops is above 0")
    parts = plan(read_recipe(args.config, args.overrides), args.gpus, args.mfu, args.peak_flops)
    if args.json:
        print(json.dumps(parts, indent=1))
        return
    print("\n\n".join(table(part) for part in parts))
    if len(parts) > 1:
        print(f"\ntogether: {_time(sum(part['seconds'] for part in parts))}")


if __name__ == "__main__":
    run(main)
