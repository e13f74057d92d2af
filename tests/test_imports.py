"""The import law: mathematics knows no networks, networks no mathematics, libraries one door each."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_clip

from unclip.clip import save_clip

ROOT = Path(__file__).parent.parent
FOLDERS = ("unclip", "training", "inference")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# What the modules of a package may import, besides the standard library and themselves.
ALLOWED = {
    "unclip.diffusion": {"torch", "numpy"},
    "unclip.nets": {"torch", "einops", "pydantic", "unclip.config"},  # pydantic: to check configurations
    "unclip.config": {"pydantic", "omegaconf", "yaml"},
    "unclip.data": {"torch", "numpy", "PIL"},
}
# What a package of ours must not import at all.
FORBIDDEN = {
    "unclip": {"training", "inference", "accelerate", "sentence_transformers", "torchvision"},
    "training": {"inference"},
}
# Who may import a library.
DOORS = {
    "open_clip": {"unclip.clip"},
    "transformers": {"unclip.clip", "training.teacher"},
    "webdataset": {"unclip.data.shards", "training.icons"},
    "sklearn": {"training.digits"},
    "tokenizers": {"unclip.tokenizer"},
    "pyarrow": {"training.sources"},
    "xformers": {"unclip.nets.attention"},
}
DYNAMIC = ("import_module", "__import__")
# Only inside of functions: slow, or absent.
LATE = {"xformers", "open_clip", "transformers", "tokenizers", "sklearn", "pyarrow"}


def name_of(path: Path) -> str:
    """unclip/nets/unet.py -> unclip.nets.unet"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, packages) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def walk(node: ast.AST, early: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it runs when its module is imported."""
    for child in ast.iter_child_nodes(node):
        late = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        now = early and not late and not typing
        yield child, now
        yield from walk(child, now)


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[str, bool]]:
    """(what is imported, in full, and whether that happens at once) for every import of a module."""
    for node, early in walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, early) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            base = base[:len(base) - node.level + is_package] if node.level else []
            base += [node.module] if node.module else []
            yield from ((".".join([*base, alias.name]), early) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in DYNAMIC:
            yield ast.literal_eval(node.args[0]), early


def offences(source: str, module: str, is_package: bool = False) -> list[str]:
    """What in a module's imports is against the law."""
    found = []
    for name, early in imports(source, module, is_package):
        top = name.partition(".")[0]
        for package, allowed in ALLOWED.items():
            free = top in sys.stdlib_module_names or top in DOORS or within(name, {*allowed, package})
            if within(module, {package}) and not free:
                found.append(f"{module} imports {name}, which {package} must not")
        for package, forbidden in FORBIDDEN.items():
            if within(module, {package}) and within(name, forbidden):
                found.append(f"{module} imports {name}, which {package} must not")
        if top in DOORS and not within(module, DOORS[top]):
            found.append(f"{module} imports {top}; only {', '.join(sorted(DOORS[top]))} may")
        if top in LATE and early:
            found.append(f"{module} imports {top} at once, not in the function that needs it")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_law_is_kept(path):
    source = path.read_text(encoding="utf-8")
    assert not offences(source, name_of(path), path.name == "__init__.py")


@pytest.mark.parametrize("module, source", [
    ("unclip.diffusion.samplers", "from ..nets import UNet"),
    ("unclip.diffusion.samplers", "from unclip.config import Config"),
    ("unclip.diffusion.samplers", "from .. import config"),
    ("unclip.diffusion.noise", "from PIL import Image"),
    ("unclip.diffusion.noise", "def f():\n    import tqdm"),
    ("unclip.nets.unet", "from unclip.diffusion.schedule import make_schedule"),
    ("unclip.nets.unet", "from ..clip import Clip"),
    ("unclip.nets.unet", "import unclip.data"),
    ("unclip.nets.blocks", "import xformers.ops"),
    ("unclip.nets.attention", "import xformers.ops"),
    ("unclip.config", "from .hardware import autocast"),
    ("unclip.data.images", "import webdataset as wds"),
    ("unclip.data.images", "from ..stages import Stage"),
    ("unclip.stages", "import open_clip"),
    ("unclip.clip", "import open_clip"),
    ("unclip.clip", "try:\n    from transformers import CLIPModel\nexcept ImportError:\n    pass"),
    ("unclip.pipeline", "import transformers.models.clip"),
    ("unclip.pipeline", "import importlib\ndef f():\n    importlib.import_module('open_clip')"),
    ("unclip.pipeline", "from training.data import Source"),
    ("unclip.hardware", "import accelerate"),
    ("training.loop", "from inference.evaluate import main"),
    ("training.data", "import webdataset"),
    ("inference.batch", "def f():\n    from open_clip import create_model"),
])  # fmt: skip
def test_the_checker_sees_what_is_against_it(module, source):
    assert offences(source, module)


@pytest.mark.parametrize("module, source", [
    ("unclip.diffusion.samplers", "import math\nimport torch.nn.functional as F\nfrom .noise import Noise"),
    ("unclip.nets.unet", "from unclip.nets.blocks import ResBlock\nfrom ..config import Config"),
    ("unclip.nets.attention", "def f():\n    from xformers.ops import memory_efficient_attention"),
    ("unclip.clip", "def f():\n    import open_clip\n    from transformers import CLIPModel"),
    ("unclip.clip", "if TYPE_CHECKING:\n    import open_clip"),
    ("training.icons.build", "import webdataset"),
    ("inference.evaluate", "from training.icons.captions import styled"),
])  # fmt: skip
def test_the_checker_lets_the_rest_be(module, source):
    assert not offences(source, module)


def test_relative_imports_are_resolved():
    def found(source, module, is_package=False):
        return [name for name, _ in imports(source, module, is_package)]

    assert found("from ..a.b import c", "unclip.nets.unet") == ["unclip.a.b.c"]
    assert found("from . import c", "unclip.nets.unet") == ["unclip.nets.c"]
    assert found("from .c import d", "unclip.nets", is_package=True) == ["unclip.nets.c.d"]


def test_every_package_is_looked_at():
    assert {name_of(path).partition(".")[0] for path in FILES} == set(FOLDERS)
    modules = [name_of(path) for path in FILES]
    for package in {*ALLOWED, *FORBIDDEN, *(door for doors in DOORS.values() for door in doors)}:
        assert any(within(module, {package}) for module in modules), f"{package} is no more"


PROBE = """
import sys
import unclip.__main__, unclip.cli
unclip.__main__.parser()
unclip.known_models()
slow = {"torch", "numpy", "PIL"} & set(sys.modules)
assert not slow, f"the command line alone imports {slow}"
import unclip.pipeline
unclip.load("icons", "cpu")
slow = {"open_clip", "transformers", "webdataset", "accelerate", "torchvision", "omegaconf", "xformers",
        "tensorboard", "torch._dynamo"} & set(sys.modules)
assert not slow, f"drawing imports {slow}"
"""


CLIP_PROBE = """
import sys
from unclip.clip import load_clip
load_clip(sys.argv[1]).encode_text(["a dog"])
assert not {"open_clip", "transformers", "torchvision"} & set(sys.modules)
"""


def probe(program: str, *argv: str, cwd: Path) -> None:
    """Run a program on this checkout, and not on a package that is installed besides."""
    program += f"assert unclip.__file__ == {str(ROOT / 'unclip' / '__init__.py')!r}, unclip.__file__\n"
    done = subprocess.run([sys.executable, "-c", f"import unclip\n{program}", *argv], capture_output=True,
                          text=True, timeout=600, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_slow_libraries_stay_out_of_the_way(tmp_path):
    """The law at run time, through other people's imports too: seconds of a newcomer's first command."""
    probe(PROBE, cwd=tmp_path)


def test_a_saved_clip_needs_neither_library(tmp_path):
    save_clip(tiny_clip(), tmp_path)
    probe(CLIP_PROBE, str(tmp_path), cwd=tmp_path)
