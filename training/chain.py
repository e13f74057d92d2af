"""Train a whole model, stage by stage, and put the stages together.

    python -m training.chain configs/icons/chain.yaml
    python -m training.chain configs/icons/chain.yaml --assemble

Every stage is a program of its own with a recipe of its own; this runs those that are not finished,
in order, and writes a pipeline directory that ``unclip --model FOLDER`` draws with. The same command
again goes on where it stopped. ``--assemble`` trains nothing: it puts together what is there.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from unclip.checkpoint import CheckpointError, read_header
from unclip.clip import Clip, load_clip
from unclip.command_line import Parser
from unclip.config import ConfigError, load_config
from unclip.files import make_folder
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import AnyPrior, Decoder, load_stage
from unclip.stages.tokenizer import GlideTokenizer

from .clip.recipe import ClipRecipe
from .programs import CODES, INTERRUPTED, STOPPED, check_downloads, run
from .recipes import Chain, Link, recipe_of
from .run.curves import CURVES, best_of, read
from .run.guard import HANGUP
from .run.resume import best_path
from .run.settings import Training
from .tasks.recipes import TOKENIZER, PictureRecipe


def checkpoint_of(link: Link) -> Path:
    """The file that a stage's run writes at its end."""
    recipe = recipe_of(link)
    return Path(recipe.train.out) / f"{recipe.stage.kind}.safetensors"


def kept(link: Link) -> Path:
    """The weights that a stage's run was told to keep: its last, or the best if there are any."""
    recipe = recipe_of(link)
    best = best_path(Path(recipe.train.out), recipe.stage.kind)
    return best if recipe.train.keep == "best" and best.is_file() else checkpoint_of(link)


def finished(link: Link) -> bool:
    """Whether a stage has seen all its pictures, or ended early."""
    recipe = recipe_of(link)
    if isinstance(recipe, ClipRecipe):
        return (Path(recipe.out) / "metrics.json").is_file()
    try:
        seen = read_header(checkpoint_of(link))["pictures_seen"]
    except CheckpointError:
        return False
    return seen >= recipe.train.pictures or _ended_early(recipe.train, seen)


def _ended_early(settings: Training, seen: int) -> bool:
    """Whether a run of so many pictures was over, since it had no gain any more."""
    path = Path(settings.out) / CURVES
    best = best_of(path, settings.keep_by) if settings.patience else None
    last = max((point["pictures"] for point in read(path)), default=0)
    return best is not None and best.since >= settings.patience and last <= seen


def load_link(link: Link) -> Clip | AnyPrior | Decoder:
    """A stage as its run left it, sampled as its recipe says now."""
    recipe = recipe_of(link)
    if isinstance(recipe, ClipRecipe):
        return load_clip(recipe.out)
    stage = load_stage(kept(link))
    stage.config = stage.config.model_copy(update={"sampling": recipe.stage.sampling})
    return stage


def check(chain: Chain) -> None:
    """Refuse, before anything is trained, parts that make no model, and a place where none can be written."""
    programs = Counter(link.program for link in chain.stages) + Counter(clip=chain.clip is not None)
    for program in ("clip", "prior", "decoder"):
        if programs[program] > 1:
            raise ConfigError(f"a model has one {program}, not {programs[program]}")
    if not programs["decoder"]:
        raise ConfigError("a model needs a decoder")
    make_folder(chain.out)


def assemble(chain: Chain) -> Path:
    """Put the stages' averaged weights together as one pipeline directory."""
    parts: dict[str, list] = {"clip": [], "prior": [], "decoder": [], "upsampler": []}
    for link in chain.stages:
        parts[link.program].append(load_link(link))
    if chain.clip is not None:
        parts["clip"].append(load_clip(chain.clip))
    clip, prior = (parts[k][0] if parts[k] else None for k in ("clip", "prior"))
    pipeline = Pipeline(
        parts["decoder"][0],
        prior,
        parts["upsampler"],
        clip,
        chain.name,
        chain.description,
        tokenizer=_tokenizer(chain),
    )
    return pipeline.save(chain.out, torch.float16 if chain.half else None)


def _tokenizer(chain: Chain) -> GlideTokenizer | None:
    """That of the first stage with a text transformer of its own."""
    for recipe in map(recipe_of, chain.stages):
        if isinstance(recipe, PictureRecipe) and recipe.stage.text is not None:
            return GlideTokenizer.load(Path(recipe.train.out) / TOKENIZER)
    return None


def _run(command: list[str]) -> int:
    """Run a program to its end, and pass on what tells this one to end: it saves what it has, and says how it
    ended by its exit code.
    """
    process = subprocess.Popen(command)
    passed = (signal.SIGINT, signal.SIGTERM, *HANGUP)
    before = {number: signal.getsignal(number) for number in passed}
    try:
        for number in passed:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, lambda number, frame: process.send_signal(number))
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, epilog=CODES)
    parser.add_argument("config", help="a chain, such as configs/icons/chain.yaml")
    parser.add_argument("--assemble", action="store_true", help="train nothing, put together what is there")
    args = parser.parse_args(argv)
    chain = load_config(Chain, args.config)
    for recipe in (chain, *map(recipe_of, chain.stages)):  # a mistake in the last recipe is an error now
        check_downloads(recipe)
    check(chain)
    for link in chain.stages:
        if not args.assemble and not finished(link):
            code = _run([sys.executable, "-m", f"training.{link.program}", link.config, *link.set])
            if code in (STOPPED, INTERRUPTED):
                return code
            if not finished(link):
                raise ConfigError(f"{link.config} is not finished; the same command goes on from there")
    print(f'{assemble(chain)}: draw with  unclip --model {chain.out} "a goldfish"')
    return 0


if __name__ == "__main__":
    run(main)
