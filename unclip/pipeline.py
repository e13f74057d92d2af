"""Text -> CLIP -> prior -> decoder -> upsamplers -> picture, in one object."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from .checkpoint import CheckpointError, write_json
from .clip import Clip, Text, load_clip, save_clip
from .config import Config, parse_config
from .data.images import to_pil
from .diffusion.noise import Noise, fold
from .diffusion.samplers import SAMPLERS
from .hardware import autocast, default_device
from .stages import Conditions, Decoder, Prior, Sampling, load_stage

MODEL_FILE = "model.json"
FORMAT = 1
Progress = Callable[[str, int, int], None]
"""(stage, steps done, steps in all), called after every step."""


class Options(Config):
    """How pictures are drawn; None = what the model was tuned for."""

    guidance_scale: float | None = Field(None, ge=0)        # decoder; 1 = none, more = more literal
    prior_guidance_scale: float | None = Field(None, ge=0)  # prior; likewise
    clip_guidance_scale: float = Field(0.0, ge=0)           # climbs CLIP's similarity; 0 = off
    steps: int | None = Field(None, ge=1)                   # decoder's sampling steps
    prior_steps: int | None = Field(None, ge=1)
    upsampler_steps: int | None = Field(None, ge=1)
    sampler: str | None = None                              # of the decoder: ddpm, ddim or dpm++2m
    negative_prompt: str | None = None                      # what guidance moves away from

    @model_validator(mode="after")
    def _known_sampler(self) -> Options:
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler '{self.sampler}'; known: {', '.join(SAMPLERS)}")
        return self


DEFAULTS = Options()


class Manifest(Config):
    """``model.json``: the files of a pipeline directory, by stage."""

    format: int = FORMAT
    name: str
    description: str = ""
    clip: str | None = None
    prior: str | None = None
    decoder: str
    upsamplers: list[str] = []


class Pipeline(nn.Module):
    """A whole model. ``generate`` draws; the methods before it are its parts, for who needs them.

    clip:       None only for a decoder that takes neither text nor image embeddings.
    prior:      None for a decoder that takes text alone (GLIDE) or nothing.
    decoder:    the first stage that makes pictures.
    upsamplers: in order, each starting from the size that the one before it made.
    """

    def __init__(
        self,
        decoder: Decoder,
        prior: Prior | None = None,
        upsamplers: Sequence[Decoder] = (),
        clip: Clip | None = None,
        name: str = "unnamed",
        description: str = "",
    ) -> None:
        super().__init__()
        self.name, self.description = name, description
        self.clip, self.prior, self.decoder = clip, prior, decoder
        self.upsamplers = nn.ModuleList(upsamplers)
        self._check()

    def _check(self) -> None:
        """Refuse stages that do not fit together."""
        size = self.decoder.size
        for stage in self.upsamplers:
            if stage.config.low_res is None or stage.config.low_res.size != size:
                raise CheckpointError(f"an upsampler does not start from {size} pixels, the size "
                                      "that the stage before it makes")
            size = stage.size
        stages = [stage for stage in (self.prior, self.decoder, *self.upsamplers) if stage is not None]
        wants_clip = [s for s in stages if isinstance(s, Prior) or s.takes_image or s.takes_text]
        if wants_clip and self.clip is None:
            raise CheckpointError("this model takes text but comes without its CLIP")
        for stage in wants_clip:
            trained_with = stage.facts.get("clip", self.clip.identity)
            if trained_with.rpartition("#")[2] != self.clip.identity.rpartition("#")[2]:  # by weights
                raise CheckpointError(f"the {stage.config.kind} was trained with CLIP {trained_with}, "
                                      f"but the model holds {self.clip.identity}")
        if self.decoder.takes_image and self.prior is None:
            raise CheckpointError("a decoder of image embeddings needs a prior")

    @property
    def size(self) -> int:
        """Height and width of the finished pictures."""
        return (self.upsamplers[-1] if self.upsamplers else self.decoder).size

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_mean.device

    @property
    def takes_prompt(self) -> bool:
        return self.prior is not None or self.decoder.takes_text

    def encode_text(self, prompts: list[str]) -> Text:
        """Embeddings and tokens of prompts; warns of what does not fit into the context."""
        for prompt in prompts:
            cut = self.clip.truncated(prompt)
            if cut:
                warnings.warn(f"the prompt is longer than {self.clip.context_length} tokens; "
                              f"this was cut off: '{cut}'", stacklevel=3)
        return self.clip.encode_text(prompts).trimmed()

    @torch.no_grad()
    def sample_prior(
        self,
        text: Text,
        seeds: Sequence[int],
        options: Options = DEFAULTS,
        negative: Text | None = None,
    ) -> Tensor:
        """Image embeddings [N,D] of length 1: of several candidates the one nearest to the text."""
        sampling = _override(self.prior.config.sampling, steps=options.prior_steps,
                             guidance_scale=options.prior_guidance_scale)
        many = text.repeat(sampling.candidates)
        conditions = self.prior.conditions(many.embed, many.tokens, many.mask)
        null = None
        if negative is not None:
            away = negative.repeat(sampling.candidates)
            null = self.prior.conditions(away.embed, away.tokens, away.mask)
        noise = Noise([fold(seed, k) for seed in seeds for k in range(sampling.candidates)], self.device)
        with self._autocast():
            embed = self.prior.sample(conditions, noise, sampling, null)
        embed = embed.unflatten(0, (len(seeds), sampling.candidates))
        best = torch.einsum("nkd,nd->nk", embed, text.embed.to(embed)).argmax(1)
        return embed[torch.arange(len(seeds)), best]

    @torch.no_grad()
    def decode(
        self,
        seeds: Sequence[int],
        image_embed: Tensor | None = None,
        text: Text | None = None,
        options: Options = DEFAULTS,
        negative: tuple[Tensor | None, Text | None] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """The decoder's pictures [N,3,S,S] in [-1,1], from an embedding, text, or neither.

        negative: image embedding and text that guidance moves away from.
        """
        sampling = _override(self.decoder.config.sampling, steps=options.steps,
                             guidance_scale=options.guidance_scale, sampler=options.sampler)
        conditions = self._conditions(self.decoder, len(seeds), image_embed, text)
        null = None if negative is None else self._conditions(self.decoder, len(seeds), *negative)
        objective = None
        if options.clip_guidance_scale and text is not None:
            objective = self._similarity(text, options.clip_guidance_scale)
        with self._autocast():
            steps = self.decoder.sample(conditions, Noise(seeds, self.device), sampling, null, objective)
            x = _walk(steps, "decoder", sampling.steps, progress)
        return self.decoder.to_picture(x, conditions)

    @torch.no_grad()
    def upsample(
        self,
        picture: Tensor,
        seeds: Sequence[int],
        image_embed: Tensor | None = None,
        text: Text | None = None,
        options: Options = DEFAULTS,
        progress: Progress | None = None,
    ) -> Tensor:
        """Enlarge the decoder's pictures through every upsampler: [N,3,S,S] in [-1,1]."""
        for number, stage in enumerate(self.upsamplers):
            sampling = _override(stage.config.sampling, steps=options.upsampler_steps)
            conditions = self._conditions(stage, len(seeds), image_embed, text, low_res=picture)
            noise = Noise([fold(seed, 1, number) for seed in seeds], self.device)
            with self._autocast():
                steps = stage.sample(conditions, noise, sampling)
                x = _walk(steps, f"upsampler {stage.size}", sampling.steps, progress)
            picture = stage.to_picture(x, conditions)
        return picture

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        n: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        progress: Progress | None = None,
        **options: object,
    ) -> Image.Image | list[Image.Image]:
        """Draw pictures.

        prompt:     a text, or several; None for a model that takes none.
        n:          pictures a prompt.
        seed:       picture k of a prompt depends on (prompt, seed, k) alone, not on its batch.
        batch_size: pictures drawn at a time.
        options:    fields of ``Options``: guidance_scale, prior_guidance_scale, clip_guidance_scale,
                    steps, prior_steps, upsampler_steps, sampler, negative_prompt.

        Returns one picture for one prompt and n = 1, else a list, prompt by prompt. Raises
        ``ValueError`` for an empty prompt, a seed that is no integer, or an option out of range.
        """
        single = (prompt is None or isinstance(prompt, str)) and n == 1
        prompts = self._prompts(prompt)
        settings = parse_config(Options, options, source="the call")
        seed, n = _integer("seed", seed), _integer("n", n, 1)
        batch_size = _integer("batch_size", batch_size, 1)
        jobs = [(text, fold(seed, k)) for text in prompts for k in range(n)]
        pictures: list[Image.Image] = []
        for start in range(0, len(jobs), batch_size):
            texts, seeds = zip(*jobs[start:start + batch_size], strict=True)
            made = self._generate(list(texts), list(seeds), settings, progress)
            pictures += [to_pil(picture) for picture in made.float().cpu()]
        return pictures[0] if single else pictures

    def _generate(self, texts: list[str | None], seeds: list[int], options: Options,
                  progress: Progress | None) -> Tensor:
        """One batch: [N,3,S,S] in [-1,1]."""
        text = away = embed = negative = None
        n = len(texts)
        if self.takes_prompt:
            unwanted = [options.negative_prompt] * n if options.negative_prompt else []
            both = self.encode_text(texts + unwanted)  # together, so that their lengths agree
            text, away = both[:n], both[n:] if unwanted else None
        if self.prior is not None:
            embed = self.sample_prior(text, seeds, options, away)
        if away is not None:
            negative = (None if self.prior is None else self.sample_prior(away, seeds, options), away)
        picture = self.decode(seeds, embed, text, options, negative, progress)
        return self.upsample(picture, seeds, embed, text, options, progress)

    def _autocast(self) -> torch.autocast:
        """bfloat16 on a GPU that has it. On a CPU float32 is as fast for a few pictures, and a picture
        is then the same in any batch."""
        return autocast(self.device, enabled=False if self.device.type == "cpu" else None)

    def _conditions(self, stage: Decoder, n: int, image_embed: Tensor | None, text: Text | None,
                    low_res: Tensor | None = None) -> Conditions:
        return stage.conditions(
            n, image_embed=image_embed if stage.takes_image else None,
            text=text.tokens if text is not None and stage.takes_text else None,
            text_mask=text.mask if text is not None and stage.takes_text else None,
            low_res=low_res)

    def _similarity(self, text: Text, scale: float) -> Callable[[Tensor], Tensor]:
        """CLIP's log-probability of the text given a picture, up to a constant (GLIDE, eq. 6)."""
        def objective(picture: Tensor) -> Tensor:
            embed = self.clip.encode_image(picture)
            return scale * self.clip.logit_scale * (embed * text.embed).sum(-1)
        return objective

    def _prompts(self, prompt: str | Sequence[str] | None) -> list[str | None]:
        if not self.takes_prompt:
            if prompt is not None:
                raise ValueError(f"the model {self.name} takes no prompt")
            return [None]
        several = isinstance(prompt, Iterable) and not isinstance(prompt, str)
        prompts = list(prompt) if several else [prompt]
        for text in prompts:
            if not isinstance(text, str):
                raise ValueError(f"a prompt must be text, not {text!r}")
            if not text.strip():
                raise ValueError("the prompt is empty; say what to draw, for example: a goldfish")
        return prompts

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write a pipeline directory that ``Pipeline.load`` reads; floats are stored as ``dtype``."""
        folder = Path(folder)
        files = {"decoder": "decoder.safetensors"}
        self.decoder.save(folder / files["decoder"], dtype)
        if self.clip is not None:
            files["clip"] = "clip"
            save_clip(self.clip, folder / "clip")
        if self.prior is not None:
            files["prior"] = "prior.safetensors"
            self.prior.save(folder / files["prior"], dtype)
        files["upsamplers"] = [f"upsampler-{stage.size}.safetensors" for stage in self.upsamplers]
        for stage, file in zip(self.upsamplers, files["upsamplers"], strict=True):
            stage.save(folder / file, dtype)
        manifest = Manifest(name=self.name, description=self.description, **files)
        write_json(folder / MODEL_FILE, manifest.model_dump(exclude_none=True))
        return folder

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> Pipeline:
        """Read a pipeline directory, strictly, onto ``device`` (None = a GPU if there is one)."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        device = default_device() if device is None else torch.device(device)
        clip = None if manifest.clip is None else load_clip(str(folder / manifest.clip)).to(device)
        prior = None if manifest.prior is None else load_stage(folder / manifest.prior, "prior", device)
        decoder = load_stage(folder / manifest.decoder, "decoder", device)
        upsamplers = [load_stage(folder / file, "decoder", device) for file in manifest.upsamplers]
        return cls(decoder, prior, upsamplers, clip, manifest.name, manifest.description).eval()


def read_manifest(folder: str | Path) -> Manifest:
    """The ``model.json`` of a pipeline directory; raises ``CheckpointError`` if it is none."""
    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a model: it holds no {MODEL_FILE}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of another version; this version reads format {FORMAT}")
    return parse_config(Manifest, values, source=str(path))


def _override(sampling: Sampling, **changes: object) -> Sampling:
    return sampling.model_copy(update={k: v for k, v in changes.items() if v is not None})


def _walk(steps, name: str, total: int, progress: Progress | None) -> Tensor:
    """Run a sampler to its end, telling ``progress`` of every step."""
    for count, step in enumerate(steps, 1):
        x = step.x
        if progress is not None:
            progress(name, count, total)
    return x


def _integer(name: str, value: object, least: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, not {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number

