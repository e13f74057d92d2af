"""The laws of the house: what a room may import, and that files stay small and go round in no circle."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from places import ROOT

FOLDERS = ("unclip", "training", "inference")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MOST_FILES, MOST_LINES = 12, 310  # of a room (besides __init__ and __main__), and of a file

# What the files of a room may import of ours, besides the room itself; late imports and annotations count.
MODELS = (
    "config files command_line options checkpoint data nets clip stages guides resources diffusion "
    "degradation pipeline convert provenance version"
)
LAW = {
    room: {f"unclip.{name}" for name in below.split()}
    for room, below in {
        "unclip.config": "files",
        "unclip.files": "",
        "unclip.version": "",
        "unclip.provenance": "config files version",
        "unclip.command_line": "resources.allocator",
        "unclip.resources": "",
        "unclip.diffusion": "",
        "unclip.degradation": "diffusion.noise",
        "unclip.data": "files config diffusion.noise provenance",
        "unclip.nets": "config",
        "unclip.checkpoint": "config files resources",
        "unclip.options": "config diffusion stages",
        "unclip.clip": "nets config files checkpoint resources",
        "unclip.stages": "diffusion degradation nets config files checkpoint resources",
        "unclip.guides": "stages clip diffusion nets config checkpoint",
        "unclip.pipeline": "options guides stages clip diffusion nets data config files checkpoint resources "
        "provenance",
        "unclip.convert": "pipeline guides stages clip nets config files checkpoint resources",
        "unclip.batch": f"{MODELS}",
        "unclip.models": f"{MODELS}",
        "unclip.plan": f"{MODELS} models",
        "unclip.app": f"{MODELS} batch models plan __version__",
        "unclip": "models pipeline version data",
        "unclip.__main__": "app",
    }.items()
}
UNCLIP = {f"unclip.{name}" for name in f"{MODELS} batch models plan".split()}
LAW |= {
    room: {f"training.{name}" for name in below.split()} | UNCLIP
    for room, below in {
        "training.streams": "",
        "training.programs": "",
        "training.icons": "",
        "training.data": "streams icons",
        "training.run": "streams programs",
        "training.tasks": "data run streams programs icons",
        "training.clip": "data run streams programs icons",
        "training.shards": "programs",
        "training.recipes": "tasks.recipes clip.recipe",
        "training.cost": "tasks clip run",
        "training": "recipes cost tasks clip run data shards icons streams programs",  # the programs
    }.items()
}
LAW["training.shards"] = {
    "unclip.config",
    "unclip.data",
    "unclip.command_line",
    "unclip.files",
    "training.programs",
}
LAW["inference.measure"] = UNCLIP | {"training.icons.captions"}
LAW["inference"] = UNCLIP | {"unclip.app", "unclip.load", "inference.measure", "training.icons.captions"}
# What a room may import of others' libraries, besides the doors; the rooms that are not named, anything.
LIBRARIES = {
    "unclip.diffusion": {"torch", "numpy"},
    "unclip.degradation": {"torch"},
    "unclip.nets": {"torch", "einops", "pydantic"},  # pydantic: to check configurations
    "unclip.config": {"pydantic", "omegaconf", "yaml"},
    "unclip.files": set(),
    "unclip.data": {"torch", "numpy", "PIL"},
}
# What a package of ours must not import at all.
FORBIDDEN = {"unclip": {"accelerate", "sentence_transformers", "torchvision"}}
# Who may import a library.
DOORS = {
    "open_clip": {"unclip.clip"},
    "transformers": {"unclip.clip", "training.clip.teacher"},
    "webdataset": {"unclip.data.reading", "unclip.data.writing", "training.icons"},
    "sklearn": {"training.digits"},
    "tokenizers": {"unclip.stages.tokenizer"},
    "pyarrow": {"training.shards.tables", "unclip.batch.reading", "unclip.batch.sinks"},
    "xformers": {"unclip.nets.attention"},
    "pillow_heif": {"unclip.data.formats"},
    "fastapi": {"unclip.app.server"},
    "fastapi_offline": {"unclip.app.server"},
    "starlette": {"unclip.app.server"},
    "anyio": {"unclip.app.server"},
    "prometheus_client": {"unclip.app.server"},
    "uvicorn": {"unclip.app.server", "unclip.app.serve"},
}
TYPES = {"_typeshed"}  # where type checkers keep the standard library's own
DYNAMIC = ("import_module", "__import__")
# Only inside of functions: slow, or absent.
LATE = {"pillow_heif", "xformers", "open_clip", "transformers", "tokenizers", "sklearn", "pyarrow"}


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
            base = base[: len(base) - node.level + is_package] if node.level else []
            base += [node.module] if node.module else []
            yield from ((".".join([*base, alias.name]), early) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in DYNAMIC:
            yield ast.literal_eval(node.args[0]), early


def room_of(module: str) -> str:
    """The longest name in the law that the module is within."""
    rooms = [room for room in LAW if within(module, {room}) and (room not in ("unclip",) or module == room)]
    return max(rooms, key=len, default="")


def offences(source: str, module: str, is_package: bool = False) -> list[str]:
    """What in a module's imports is against the law."""
    room = room_of(module)
    if not room:
        return [f"{module} lies in no room that the law knows"]
    wrong = []
    for name, early in imports(source, module, is_package):
        top = name.partition(".")[0]
        if top in FOLDERS and not (
            within(name, {room} - {"unclip", "training", "inference"})
            or within(name, LAW[room])
            or name == module
        ):
            wrong.append(f"{module} imports {name}, which {room} must not")
        others = {*FOLDERS, *sys.stdlib_module_names, *TYPES, *DOORS}
        if room in LIBRARIES and top not in {*others, *LIBRARIES[room]}:
            wrong.append(f"{module} imports {name}, which {room} must not")
        for package, forbidden in FORBIDDEN.items():
            if within(module, {package}) and within(name, forbidden):
                wrong.append(f"{module} imports {name}, which {package} must not")
        if top in DOORS and not within(module, DOORS[top]):
            wrong.append(f"{module} imports {top}; only {', '.join(sorted(DOORS[top]))} may")
        if top in LATE and early:
            wrong.append(f"{module} imports {top} at once, not in the function that needs it")
    return wrong


def circles(edges: Mapping[str, set[str]]) -> list[str]:
    """Modules from which a chain of imports leads back to themselves."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for name in edges.get(todo.pop(), set()) - seen:
                seen.add(name)
                todo.append(name)
        return seen

    return sorted(module for module in edges if module in reached(module))


def edges_of(files: Mapping[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Which of our modules each of them imports; files: the source and whether it is a package, by name."""
    edges: dict[str, set[str]] = {}
    for module, (source, is_package) in files.items():
        edges[module] = set()
        for name, _ in imports(source, module, is_package):
            while name and name not in files:
                name = name.rpartition(".")[0]
            edges[module] |= {name} - {"", module}
    return edges


def test_no_file_imports_itself_in_the_end():
    files = {name_of(path): (path.read_text(encoding="utf-8"), path.name == "__init__.py") for path in FILES}
    assert not circles(edges_of(files))


def test_a_circle_is_seen_late_imports_and_annotations_included():
    late = {
        "p.a": ("def f():\n    from .b import g", False),
        "p.b": ("from . import c", False),
        "p.c": ("if TYPE_CHECKING:\n    from .a import f", False),
        "p.d": ("from .a import f", False),
    }
    assert circles(edges_of(late)) == ["p.a", "p.b", "p.c"]
    late["p.c"] = ("", False)
    assert not circles(edges_of(late))


def test_rooms_and_files_stay_small():
    sizes = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: size for name, size in sizes.items() if size > MOST_LINES}
    rooms = Counter(path.parent for path in FILES if path.name not in ("__init__.py", "__main__.py"))
    assert not {str(room): count for room, count in rooms.items() if count > MOST_FILES}


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
    ("unclip.stages.stage", "import open_clip"),
    ("unclip.stages.decoder", "from ..pipeline.model import Model"),
    ("unclip.pipeline.model", "if TYPE_CHECKING:\n    from ..app import cli"),
    ("unclip.attic", "import os"),
    ("training.tasks.prior", "from ..cost.cost import Cost"),
    ("training.prior", "from .decoder import main"),
    ("inference.evaluate", "from training.data.source import Source"),
    ("unclip.clip", "import open_clip"),
    ("unclip.clip", "try:\n    from transformers import CLIPModel\nexcept ImportError:\n    pass"),
    ("unclip.pipeline.pipeline", "import transformers.models.clip"),
    ("unclip.pipeline.pipeline", "import importlib\ndef f():\n    importlib.import_module('open_clip')"),
    ("unclip.pipeline.pipeline", "from training.data import Source"),
    ("unclip.resources.devices", "import accelerate"),
    ("training.run.loop", "from inference.evaluate import main"),
    ("training.data.source", "import webdataset"),
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
    named = {*LAW, *FORBIDDEN, *LIBRARIES, *(door for doors in DOORS.values() for door in doors)}
    allowed = {room for rooms in LAW.values() for room in rooms} - {"unclip.load", "unclip.__version__"}
    for package in named | allowed:
        assert any(within(module, {package}) for module in modules), f"{package} is no more"
