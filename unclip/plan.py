"""What a model takes of memory, stage by stage, before any of it is fetched or loaded.

    print(plan("karlo", "bfloat16"))

Networks are built on the meta device at full size and called there once, as sampling calls them: with
guidance's doubled batch, and the gradient of what guides by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import CheckpointError, SavedConfig, read_header
from .config import parse_config
from .guides.classifier import Classifier
from .guides.noised_clip import NoisedClip
from .pipeline.checks import integer
from .pipeline.model import Model
from .pipeline.request import MOST
from .resources.devices import free_memory, parse_dtype, place
from .resources.peak import peak_activations
from .resources.weightless import held_bytes, parameters
from .stages import AnyPrior, ARPrior, Decoder, DecoderStageConfig, Prior, TextPrior

GIB, MIB = 2**30, 2**20
GUIDES = ("classifier", "guide", "weaker")
Part = AnyPrior | Decoder | Classifier | NoisedClip
PARTS: tuple[type[Part], ...] = (Prior, ARPrior, Decoder, Classifier, NoisedClip)
KINDS = {part.kind(): part for part in PARTS}


@dataclass(frozen=True)
class Row:
    """One stage: learned numbers, bytes of them, and the most bytes beside them while it works."""

    stage: str
    parameters: int
    weights: int
    activations: int | None  # None = not measured, for a text encoder: little


@dataclass(frozen=True)
class Plan:
    """The rows of a model; ``str`` makes a table of them."""

    title: str
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def peak(self) -> int:
        """Bytes, with all stages on the device."""
        return sum(row.weights for row in self.rows) + max(row.activations or 0 for row in self.rows)

    @property
    def peak_offloaded(self) -> int:
        """Bytes, with one stage on the device at a time, but for what guides the decoder beside it."""
        together = [row for row in self.rows if row.stage in ("decoder", *GUIDES)]
        groups = [[row] for row in self.rows if row not in together] + [together]
        return max(
            sum(row.weights for row in group) + max(row.activations or 0 for row in group) for group in groups
        )

    def __str__(self) -> str:
        lines = [self.title, f"{'stage':<16}{'parameters':>16}{'weights':>12}{'activations':>14}"]
        for row in self.rows:
            taken = "" if row.activations is None else _size(row.activations)
            lines.append(f"{row.stage:<16}{row.parameters:>16,}{_size(row.weights):>12}{taken:>14}")
        total = sum(row.weights for row in self.rows)
        lines.append(f"{'together':<16}{self.parameters:>16,}{_size(total):>12}")
        lines.append(f"peak: {_size(self.peak)}; with --offload {_size(self.peak_offloaded)} on the device")
        return "\n".join(lines)


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def plan(
    name_or_path: str | Path, dtype: str | torch.dtype = "float32", pictures: int = 1, size: int | None = None
) -> Plan:
    """Parameters and memory of a model: a shipped or public name, a pipeline directory, a public file.

    dtype:    of the weights; activations are counted as they are computed with them, in float32 or under
              bfloat16's autocast.
    pictures: drawn at a time, 1 to ``MOST``.
    size:     of the pictures, as ``Pipeline.at_size`` takes it; None = the model's own.

    Nothing is fetched. Raises ``ValueError`` for what ``unclip.load`` does not know either.
    """
    dtype, pictures = parse_dtype(dtype), integer("n", pictures, 1, MOST)
    title, configs, clip = _parts(name_or_path)
    rows = [Row("clip", clip, clip * 4, None)] if clip else []  # float32 in any case
    if size is not None and any(stage not in ("prior", "decoder") for stage, _ in configs):
        raise ValueError(f"{name_or_path} has upsamplers or guides, which know no other size than their own")
    for stage, config in configs:
        if size is not None and isinstance(config, DecoderStageConfig):
            config = config.at_size(size)
        module = on_meta(config)
        place(module, torch.device("meta"), dtype)
        count, held = parameters(module), held_bytes(module)
        activations = peak_activations(
            partial(_call, module, pictures), None if dtype == torch.float32 else dtype
        )
        rows.append(Row(stage, count, held, activations))
    return Plan(
        f"{title}: {str(dtype).removeprefix('torch.')} weights, {pictures} picture"
        f"{'s' * (pictures > 1)} at a time",
        tuple(rows),
    )


def on_meta(config: SavedConfig) -> Part:
    """The stage of a configuration, at full size and without any memory."""
    return KINDS[config.kind].blank(config)


def _parts(name_or_path: str | Path) -> tuple[str, list[tuple[str, SavedConfig]], int]:
    """Title, configurations by stage, and the parameters of CLIP; of ours from headers alone."""
    from .models import find

    path = find(name_or_path)
    if path is not None:
        return str(name_or_path), *_ours(path)
    from . import convert

    model = convert.MODELS.get(str(name_or_path))
    if model is not None:
        every = convert.configs(model)
        configs = {stage: one for stage, one in every.items() if isinstance(one, SavedConfig)}
        labelled = list(_labelled(configs, every.get("upsamplers", [])))
        return f"{model.name} ({model.about})", labelled, every.get("clip", 0)
    pipeline = convert.load(name_or_path, "cpu")  # mapped from the disk, not read
    stages: dict[str, Part | None] = {
        "prior": pipeline.prior,
        "decoder": pipeline.decoder,
        "classifier": pipeline.classifier,
        "guide": pipeline.guide,
        "weaker": pipeline.weaker,
    }
    configs = {name: stage.config for name, stage in stages.items() if stage is not None}
    upsamplers = [stage.config for stage in pipeline.upsamplers]
    clip = 0 if pipeline.clip is None else parameters(pipeline.clip)
    return str(name_or_path), list(_labelled(configs, upsamplers)), clip


def _labelled(
    configs: Mapping[str, SavedConfig], upsamplers: Sequence[DecoderStageConfig]
) -> Iterator[tuple[str, SavedConfig]]:
    for stage in ("prior", "decoder", "classifier", "guide", "weaker"):
        if stage in configs:
            yield stage, configs[stage]
    for config in upsamplers:
        yield f"upsampler {config.net.image_size}", config


def _ours(path: Path) -> tuple[list[tuple[str, SavedConfig]], int]:
    from .pipeline.directory import DECODER_FILE, MODEL_FILE, read_manifest

    if path.is_file() or not (path / MODEL_FILE).is_file() and (path / DECODER_FILE).is_file():
        return [("decoder", _config(path if path.is_file() else path / DECODER_FILE))], 0
    manifest = read_manifest(path).model_dump(exclude_none=True)
    configs: dict[str, SavedConfig] = {
        stage: _config(path / manifest[stage])
        for stage in ("prior", "decoder", "classifier", "guide", "weaker")
        if stage in manifest
    }
    upsamplers = [_upsampler(path / file) for file in manifest["upsamplers"]]
    clip = _stored(path / manifest["clip"]) if "clip" in manifest else 0
    return list(_labelled(configs, upsamplers)), clip


def _config(path: Path) -> SavedConfig:
    header = read_header(path)
    if header["kind"] not in KINDS:
        raise CheckpointError(f"{path} holds a {header['kind']}, not a {' or a '.join(KINDS)}")
    return parse_config(KINDS[header["kind"]].config_class, header["config"], source=str(path))


def _upsampler(path: Path) -> DecoderStageConfig:
    return parse_config(DecoderStageConfig, read_header(path, Decoder.kind())["config"], source=str(path))


def _stored(folder: Path) -> int:
    """Numbers in a folder's safetensors files, from their headers."""
    from safetensors import safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            count += sum(torch.Size(file.get_slice(key).get_shape()).numel() for key in file.keys())
    return count


def _call(module: Part, n: int) -> object:
    """One step of sampling ``n`` pictures, on the meta device."""
    if isinstance(module, Classifier):
        x = _pictures(n, module.config.net.image_size)
        return module.climb(_whole(n))(x, _whole(n), x)
    if isinstance(module, NoisedClip):
        x = _pictures(n, module.config.net.image_size)
        return module.climb(["a goldfish"] * n)(x, _whole(n), x)
    with torch.no_grad():
        return _call_prior(module, n) if isinstance(module, TextPrior) else _call_decoder(module, n)


def _call_prior(prior: AnyPrior, n: int) -> object:
    net, sampling = prior.config.net, prior.config.sampling
    n *= sampling.candidates
    embed = torch.empty(n, net.embed_dim, device="meta")
    text = torch.empty(n, net.text_length, net.text_dim, device="meta")
    inputs = prior.conditions(embed, text, text.new_ones(n, net.text_length, dtype=torch.bool))
    if isinstance(prior, ARPrior):  # all steps at once, which take no less than one after the other
        if sampling.guidance_scale != 1:
            inputs = {key: torch.cat([value, value]) for key, value in inputs.items()}
        codes = _whole(len(inputs["text"]))
        return prior.network(codes[:, None].expand(-1, prior.config.net.components), codes, **inputs)
    diffused = prior.config.sampling
    denoise = prior.denoise(
        inputs, inputs, diffused.guidance_scale, diffused.guidance_rescale, diffused.threshold
    )
    return denoise(torch.empty(n, net.embed_dim, device="meta"), _whole(n))


def _call_decoder(decoder: Decoder, n: int) -> object:
    decoder.last = None  # of two networks one works at a time, and which is a question to numbers
    inputs, sampling = decoder.encode(decoder.blank_conditions(n)), decoder.config.sampling
    denoise = decoder.denoise(
        inputs, inputs, sampling.guidance_scale, None, sampling.guidance_rescale, sampling.threshold
    )
    prediction = denoise(torch.empty(n, *decoder.shape, device="meta"), _whole(n))
    if decoder.autoencoder is not None:
        decoder.to_picture(prediction.x0, inputs)
    return prediction


def _pictures(n: int, size: int) -> Tensor:
    return torch.empty(n, 3, size, size, device="meta")


def _whole(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int64, device="meta")


def fitting(pipeline: Model) -> int:
    """How many pictures of a model are drawn at a time: a power of two, at most 16, on a GPU 64.

    By the memory that is free where it works, of which a fifth is left alone.
    """
    stages = [one for one in (pipeline.prior, *pipeline.picture_stages) if one is not None]
    needed = max(peak_activations(partial(_call, on_meta(stage.config), 1)) for stage in stages)
    size = 64 if pipeline.device.type == "cuda" else 16
    while size > 1 and size * needed > 0.8 * free_memory(pipeline.device):
        size //= 2
    return size
