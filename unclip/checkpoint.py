"""Checkpoints: one safetensors file whose header says everything that is needed to use it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import Config, looked_up, parse_config
from .files import impostor, parse_json, regular, start_of, written_aside
from .resources.devices import align, aligned, as_device, in_precision, laid_out
from .resources.weightless import weightless

FORMAT = 1  # the version of the header's form; raised when an old file would be misread
HEADER_CHARACTERS = 16 << 20  # most of a header's JSON


class CheckpointError(ValueError):
    """A file that is missing, damaged, of another kind, or of another version."""


def save_checkpoint(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    config: Mapping,
    dtype: torch.dtype | None = None,
    **facts: object,
) -> None:
    """Write ``tensors`` with a self-describing header.

    kind:   what the file holds ("prior", "decoder", "upsampler", ...).
    config: the stage's whole configuration, JSON-able.
    dtype:  storage type of floating tensors (None = as they are); they load as float32.
    facts:  anything else worth keeping (pictures seen, source, versions), JSON-able.
    """

    def stored(value: Tensor) -> Tensor:
        value = value.detach().cpu().contiguous()
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    written = {key: stored(value) for key, value in tensors.items()}
    sums = {key: sum_of(value) for key, value in written.items()}
    header = {"format": FORMAT, "kind": kind, "config": config, **facts, "sums": sums}
    with written_aside(path) as aside:
        save_file(written, aside, metadata={"unclip": json.dumps(header)})


def sum_of(value: Tensor) -> int:
    """CRC-32 of a tensor's bytes as they are stored."""
    return zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def no_weights(path: str | Path) -> str | None:
    """What a file is that stands in the place of weights, in words; ``ValueError`` if it is no file."""
    start = start_of(path)
    return impostor(start) if start else "it is empty"


def is_ours(path: str | Path) -> bool:
    """Whether a safetensors file describes itself as our checkpoints do; a damaged one counts as ours."""
    try:
        with safe_open(regular(path), framework="pt") as file:
            return "unclip" in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return True


def read_header(path: str | Path, kind: str | None = None) -> dict:
    """The header of a checkpoint; raises ``CheckpointError`` if it is not ours, or not of ``kind``."""
    header, _ = _header_and_sums(path, kind)
    return header


def _header_and_sums(path: str | Path, kind: str | None) -> tuple[dict, dict[str, int] | None]:
    path = Path(path)
    if not path.exists() or path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}{looked_up(path)}")
    try:
        if reason := no_weights(path):
            raise CheckpointError(f"{path} is not a readable safetensors file: {reason}")
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("unclip")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None
    except CheckpointError:
        raise
    except ValueError as error:  # no regular file
        raise CheckpointError(str(error)) from None
    if text is None:
        raise CheckpointError(f"{path} was not written by unclip: its header has no description")
    try:
        if len(text) > HEADER_CHARACTERS:
            raise ValueError(f"it has {len(text):,} characters, of at most {HEADER_CHARACTERS:,}")
        header = parse_json(text, "it", format=int, kind=str, config=dict, sums=(dict, NoneType))
    except ValueError as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from None
    if header["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {header['format']}; this version reads {FORMAT}")
    if kind is not None and header["kind"] != kind:
        raise CheckpointError(f"{path} holds a {header['kind']}, not a {kind}")
    return header, header.pop("sums", None)  # files of earlier versions have none


def load_checkpoint(
    path: str | Path,
    kind: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    like: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict]:
    """Read ``(tensors, header)``, each tensor once, to where it stays: in aligned memory.

    dtype: of weights, as ``devices.in_precision`` says; other floating tensors come back as float32.
    like:  tensors, perhaps on the meta device, whose names and shapes the file must have; they are compared
           before any tensor is read.

    Raises ``CheckpointError`` for a file that is no checkpoint, does not fit, or whose tensors are not as
    they were written, by the sums in its header (files of earlier versions have none).
    """
    header, sums = _header_and_sums(path, kind)
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            if like is not None:
                shapes = {key: torch.Size(file.get_slice(key).get_shape()) for key in keys}
                check_fit({key: value.shape for key, value in like.items()}, shapes, _named(path, header))
            if sums is not None and sums.keys() != set(keys):
                raise CheckpointError(f"{path} has a damaged header: its sums are of other tensors")
            for key in keys:
                value = file.get_tensor(key)
                if sums is not None and sum_of(value) != sums[key]:
                    raise CheckpointError(
                        f"{_named(path, header)} is damaged: {key} is not as it was written, by its "
                        "checksum; copy or download the file again"
                    )
                tensors[key] = aligned(laid_out(in_precision(value, dtype).to(device)))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    return tensors, header


def _named(path: str | Path, header: Mapping) -> str:
    return f"the {header['kind']} {path}"


def check_fit(
    wanted: Mapping[str, torch.Size], held: Mapping[str, torch.Size], source: str, unused: Iterable[str] = ()
) -> None:
    """Refuse tensors that are missing, unexpected or misshapen, by their shapes; all are listed at once."""
    missing = sorted(wanted.keys() - held.keys())
    unexpected = sorted({*unused, *(held.keys() - wanted.keys())})
    misshapen = [
        f"{key} {tuple(held[key])} for {tuple(wanted[key])}"
        for key in sorted(wanted.keys() & held.keys())
        if held[key] != wanted[key]
    ]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"{source} does not fit the network:\n  missing: {missing}\n"
            f"  unexpected: {unexpected}\n  of another shape: {misshapen}"
        )


def load_strictly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    unused: Iterable[str] = (),
    dtype: torch.dtype | None = None,
) -> None:
    """Fill ``module``; a missing, unexpected or misshapen tensor fails, and all are listed at once.

    unused: names of the source that are known to have no place; any is an error.
    dtype:  of floating tensors; None = as they are.

    A module that was built on the meta device takes the tensors themselves, uncopied if they lie aligned.
    Raises ``CheckpointError`` as well for weights that are not finite, with which nothing can be drawn.
    """
    target = module.state_dict()
    shapes = {key: value.shape for key, value in tensors.items()}
    check_fit({key: value.shape for key, value in target.items()}, shapes, source, unused)
    if bad := [key for key, value in tensors.items() if not _is_finite(value)]:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CheckpointError(
            f"{source} holds weights that are no finite numbers, with which nothing can be drawn: "
            f"{', '.join(bad[:3])}{more}"
        )
    if dtype is not None:
        tensors = {k: value.to(dtype) if value.is_floating_point() else value for k, value in tensors.items()}
    module.load_state_dict(tensors, strict=True, assign=any(value.is_meta for value in target.values()))
    align(module)


def _is_finite(value: Tensor) -> bool:
    """Without a second tensor of its size."""
    if value.is_meta or not value.is_floating_point() or not value.numel():
        return True
    return bool(torch.stack(torch.aminmax(value)).isfinite().all())


class SavedConfig(Config):
    """The configuration of what a checkpoint holds whole, and what that is: "prior", "decoder", ..."""

    kind: str


class Saved(nn.Module):
    """What a checkpoint holds whole: a module that its configuration alone builds.

    facts: what the checkpoint says besides: pictures seen, the CLIP model, ...
    """

    config_class: ClassVar[type[SavedConfig]]
    config: SavedConfig

    def __init__(self, config: SavedConfig) -> None:
        super().__init__()
        self.config = config
        self.facts: dict[str, Any] = {}

    @classmethod
    def kind(cls) -> str:
        """What its files hold: "prior", "decoder", ..."""
        return cls.config_class.model_fields["kind"].default

    def save(self, path: str | Path, dtype: torch.dtype | None = None, **facts: object) -> None:
        """Write it as one checkpoint; floats are stored as ``dtype`` (None = as they are)."""
        save_checkpoint(
            path,
            self.state_dict(),
            kind=self.kind(),
            dtype=dtype,
            config=self.config.model_dump(mode="json"),
            **{**self.facts, **facts},
        )

    @classmethod
    def blank(cls, config: SavedConfig) -> Self:
        """At full size without memory, on the meta device; eval mode, no gradients."""
        with weightless():
            return cls(config).eval().requires_grad_(False)

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Rebuild it from its checkpoint, or from the folder of its run, strictly; eval mode, no gradients.

        It is built on the meta device, compared with the file before a weight is read, and takes the file's
        tensors as they are: nothing is initialised at random, and there is never a second copy. dtype: of its
        weights; bfloat16 takes half the memory, and is to be run under autocast.
        """
        path, device = Path(path), as_device(device)
        path = path / f"{cls.kind()}.safetensors" if path.is_dir() else path
        header = read_header(path, cls.kind())
        config = parse_config(cls.config_class, header["config"], source=str(path))
        try:
            module = cls.blank(config)
        except ValueError as error:  # numbers that are in range, but do not go together
            raise CheckpointError(f"{path} describes no network that can be built: {error}") from None
        tensors, _ = load_checkpoint(path, cls.kind(), dtype, device, module.state_dict())
        load_strictly(module, tensors, _named(path, header))
        module.facts = {k: v for k, v in header.items() if k not in ("format", "kind", "config")}
        module.check(_named(path, header))
        return module.to(device)

    def check(self, source: str) -> None:
        """Refuse, after loading, what no such module can hold; raises ``CheckpointError``."""
        if not isinstance(self.facts.get("clip", ""), str):
            raise CheckpointError(f"{source} has a damaged header: its clip is no name")
