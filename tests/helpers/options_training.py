"""What each argument of the training programs changes; ``test_options`` holds them to it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from options_inference import shards
from programs import Program

import training.chain
import training.classifier
import training.clip.__main__
import training.decoder
import training.digits
import training.doctor
import training.embed
import training.icons.__main__
import training.plan
import training.prior
import training.shards.__main__
from training.clip.recipe import ClipRecipe
from training.doctor import Report, as_json
from training.icons.fetch import FAMILIES, KEYWORDS
from training.recipes import Chain
from training.tasks.recipes import ClassifierRecipe, PictureRecipe, PriorRecipe
from unclip.data.pictures import PIXELS

# Tables from here on, laid out by hand.
# fmt: off
CHAIN = SimpleNamespace(out="out", stages=[SimpleNamespace(program="prior", config="prior.yaml",
                                                            set=["train.seed=1"])])
RECIPE = SimpleNamespace(stage=SimpleNamespace(low_res=None), train=SimpleNamespace(out="none"),
                         out="none", precision="fp32")


def stopped(*_: object, **__: object) -> None:
    raise ValueError("this is as far as it goes")


def recipes(main, recipe: type, begins: str) -> Program:
    """A program of such recipes; ``begins`` is what it calls first when it is to train."""
    first, parameter = begins.rpartition(".")[2], BEGUN[begins.rpartition(".")[2]]
    return Program(
        main, {"config": ["some.yaml"]},
        {"training.programs.load_config": RECIPE, "training.programs.to_yaml": "",
         "training.programs._check_programs": None, "training.programs.check_downloads": None,
         begins: stopped},
        {"config": (["x.yaml"], {"load_config.path": "x.yaml"}),
         "allow_programs": (["--allow-programs"], {"_check_programs.allowed": True}),
         "allow_downloads": (["--allow-downloads"], {"check_downloads.recipe": None}),
         "overrides": (["train.seed=1", "data.size=8"],
                       {"load_config.overrides": ["train.seed=1", "data.size=8"],
                        "_check_programs.overrides": ["train.seed=1", "data.size=8"],
                        "check_downloads.overrides": ["train.seed=1", "data.size=8"]}),
         "dry_run": (["--dry-run"], {"to_yaml.config": RECIPE, "said": None, f"{first}.{parameter}": None})},
        {"load_config.cls": recipe, "_check_programs.recipe": RECIPE, "check_downloads.recipe": RECIPE})


BEGUN = {"make_accelerator": "settings", "check": "out"}

SHARDS = Program(
    training.shards.__main__.main, {"source": ["pictures"], "out": ["out"]},
    {"training.shards.__main__.build": "made", "training.shards.__main__.summary": ""},
    {"source": (["x"], {"build.source": "x"}),
     "out": (["x"], {"build.out": Path("x"), "summary.out": Path("x")}),
     "size": (["--size", "64"], {"build.options.size": 64}),
     "min_size": (["--min-size", "32"], {"build.options.min_size": 32}),
     "max_aspect": (["--max-aspect", "2.5"], {"build.options.max_aspect": 2.5}),
     "background": (["--background", "red"], {"build.options.background": "red"}),
     "format": (["--format", "webp"], {"build.options.format": "webp"}),
     "quality": (["--quality", "50"], {"build.options.quality": 50}),
     "uncaptioned": (["--uncaptioned"], {"build.options.uncaptioned": True}),
     "captions": (["--captions", "first"], {"build.options.first": True}),
     "picture": (["--picture", "path"], {"build.columns.picture": "path"}),
     "caption": (["--caption", "a", "--caption", "b"], {"build.columns.captions": ("a", "b")}),
     "root": (["--root", "r"], {"build.columns.root": Path("r")}),
     "heldout": (["--heldout", "0.25"], {"build.heldout": 0.25}),
     "per_shard": (["--per-shard", "50"], {"build.per_shard": 50}),
     "workers": (["--workers", "77"], {"build.workers": 77}),
     "overwrite": (["--overwrite"], {"build.overwrite": True})},
    {"build.options.pixels": PIXELS, "summary.result": "made"})

EMBED = Program(
    training.embed.main, {"shards": ["a/some.tar"], "clip": ["--clip", "c"]},
    {"training.embed.load_clip": "a CLIP", "training.embed.expand": shards, "training.embed.embed": {},
     "training.embed.load_decoder": "a decoder"},
    {"shards": (["b/x.tar", "b/y.tar"], {"expand.paths": ["b/x.tar", "b/y.tar"],
                                         "embed.shards": ["b/x.tar", "b/y.tar"],
                                         "embed.out": Path("b/embeddings")}),
     "clip": (["--clip", "d"], {"load_clip.source": "d"}),
     "out": (["--out", "x"], {"embed.out": Path("x")}),
     "tokens": (["--tokens"], {"embed.tokens": True}),
     "latents": (["--latents", "d"], {"load_decoder.path": Path("d"), "embed.space": "a decoder",
                                      "load_decoder.device": torch.device("cpu")}),
     "size": (["--size", "64"], {"embed.size": 64}),
     "background": (["--background", "red"], {"embed.background": "red"}),
     "batch": (["--batch", "6"], {"embed.batch": 6}),
     "workers": (["--workers", "77"], {"embed.workers": 77})},
    {"load_clip.device": torch.device("cpu"), "embed.clip": "a CLIP"})

DOCTOR = Program(
    training.doctor.main, {"shards": ["some.tar"]},
    {"unclip.clip.load_clip": "a CLIP", "unclip.data.reading.expand": shards,
     "training.doctor.look": Report(), "training.doctor.json.dumps": ""},
    {"shards": (["x.tar", "y.tar"], {"expand.paths": ["x.tar", "y.tar"], "look.shards": ["x.tar", "y.tar"]}),
     "clip": (["--clip", "c"], {"load_clip.source": "c", "look.clip": "a CLIP"}),
     "embeddings": (["--embeddings", "e"], {"look.embeddings": "e"}),
     "workers": (["--workers", "77"], {"look.workers": 77}),
     "json": (["--json"], {"dumps.obj": as_json(Report()), "dumps.indent": 1})},
    {"said": "0"})

PLAN = Program(
    training.plan.main, {"config": ["some.yaml"]},
    {"training.plan.read_recipe": "a recipe", "training.plan.plan": ["a part"], "training.plan.table": "",
     "training.plan.json.dumps": ""},
    {"config": (["x.yaml"], {"read_recipe.path": "x.yaml"}),
     "overrides": (["train.seed=1"], {"read_recipe.overrides": ["train.seed=1"]}),
     "gpus": (["--gpus", "8"], {"plan.gpus": 8}),
     "mfu": (["--mfu", "0.25"], {"plan.mfu": 0.25}),
     "peak_flops": (["--peak-flops", "1e12"], {"plan.peak_flops": 1e12}),
     "json": (["--json"], {"dumps.obj": ["a part"], "dumps.indent": 1, "table.part": None})},
    {"plan.recipe": "a recipe", "table.part": "a part"})

ALONE = Program(
    training.chain.main, {"config": ["some.yaml"], "assemble": ["--assemble"]},
    {"training.chain.load_config": CHAIN, "training.chain.recipe_of": None, "training.chain.check": None,
     "training.chain.finished": False,
     "training.chain._run": 2,
     "training.chain.assemble": "out"},
    {"config": (["x.yaml"], {"load_config.path": "x.yaml"})},
    {"load_config.cls": Chain, "recipe_of.link": CHAIN.stages[0], "check.chain": CHAIN,
     "assemble.chain": CHAIN})
TOGETHER = Program(
    training.chain.main, {"config": ["some.yaml"]}, ALONE.watched,
    {"assemble": (["--assemble"], {
        "said": None, "finished.link": None, "finished'.link": None, "_run.command": None,
        "assemble.chain": CHAIN})},
    {"load_config.cls": Chain, "load_config.path": "some.yaml", "recipe_of.link": CHAIN.stages[0],
     "check.chain": CHAIN, "finished.link": CHAIN.stages[0], "finished'.link": CHAIN.stages[0],
     "_run.command": [sys.executable, "-m", "training.prior", "prior.yaml", "train.seed=1"]})

DIGITS = Program(
    training.digits.main, {"out": ["out"]}, {"training.digits.build": {"train": 9}},
    {"out": (["x"], {"build.out": Path("x")}), "size": (["--size", "16"], {"build.size": 16})},
    {})

FETCHED = len(FAMILIES) + len(KEYWORDS)
ICONS = Program(
    training.icons.__main__.main, {"out": ["out"]},
    {f"training.icons.__main__.{name}": answer for name, answer in (
        ("check_writable", None), ("fetch", lambda package, cache: Path(cache, package.family)),
        ("collect_all", ["all icons"]), ("choose", ["few icons"]), ("build", {"sizes": {}}))},
    {"out": (["x"], {"check_writable.out": Path("x"), "build.out": Path("x")}),
     "sizes": (["--size", "64", "--size", "256"], {"build.sizes": [64, 256]}),
     "names": (["--names", "n.txt"], {"choose.icons": ["all icons"], "choose.path": Path("n.txt"),
                                      "build.icons": ["few icons"]}),
     "per_shard": (["--per-shard", "50"], {"build.per_shard": 50}),
     "workers": (["--workers", "77"], {"build.workers": 77}),
     "cache": (["--cache", "c"], {
         **{f"fetch{chr(39) * k}.cache": Path("c") for k in range(FETCHED)},
         "collect_all.folders": {package.family: Path("c", package.family) for package in FAMILIES},
         "collect_all.emojibase": Path("c/emojibase-data"), "collect_all.emojilib": Path("c/emojilib")})},
    {"build.sizes": [64], "build.icons": ["all icons"],
     "build.packages": {package.name: package.version for package in (*FAMILIES, *KEYWORDS)},
     **{f"fetch{chr(39) * k}.package.{key}": getattr(package, key) for key in ("name", "version", "sha256")
        for k, package in enumerate((*FAMILIES, *KEYWORDS))}})

BEGINNINGS = {  # of the programs that share ``training.programs.program``
    "decoder": (training.decoder.main, PictureRecipe, "training.tasks.start.make_accelerator"),
    "prior": (training.prior.main, PriorRecipe, "training.tasks.start.make_accelerator"),
    "classifier": (training.classifier.main, ClassifierRecipe, "training.tasks.start.make_accelerator"),
    "clip": (training.clip.__main__.main, ClipRecipe, "training.clip.__main__.folder.check"),
}
PROGRAMS = {
    "training/shards/__main__.py": [SHARDS],
    "training/embed.py": [EMBED],
    "training/doctor.py": [DOCTOR],
    "training/plan.py": [PLAN],
    "training/chain.py": [ALONE, TOGETHER],
    "training/digits.py": [DIGITS],
    "training/icons/__main__.py": [ICONS],
    "training/programs.py": [recipes(*beginning) for beginning in BEGINNINGS.values()],
}
