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
from .classifier import Classifier
from .clip import Clip, Text, load_clip, save_clip
from .config import Config, parse_config
from .data.images import to_pil
from .diffusion.noise import Noise, fold
from .diffusion.samplers import SAMPLERS, Step
from .hardware import autocast, default_device
from .stages import Conditions, Decoder, Prior, Sampling, Steps, load_stage

MODEL_FILE = "model.json"
DECODER_FILE = "decoder.safetensors"
FORMAT = 1
Progress = Callable[[str, int, int], None]
"""(stage, steps done, steps in all), called after every step."""
Watch = Callable[[Step], None]
"""Called with every step of the decoder, of one batch of pictures after another."""


class Options(Config):
    """How pictures are drawn; None = what the model was tuned for."""

    guidance_scale: float | None = Field(None, ge=0)        # decoder; 1 = none, more = more literal
    prior_guidance_scale: float | None = Field(None, ge=0)  # prior; likewise
    clip_guidance_scale: float = Field(0.0, ge=0)           # climbs CLIP's similarity; 0 = off
    steps: Steps | None = None  # decoder's sampling steps: a number, "10,10,3,2,2", "ddim25" or "fast27"
    prior_steps: Steps | None = None
    upsampler_steps: Steps | None = None
    sampler: str | None = None                              # of the decoder: ddpm, ddim, dpm++2m or heun
    negative_prompt: str | None = None                      # what guidance moves away from
    class_: int | None = Field(None, ge=0)                  # for a model of classes, or with a classifier
    classifier_scale: float | None = Field(None, ge=0)      # climbs the classifier's log p(class); None = 1

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
        self.classifier: Classifier | None = None
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

    @property
    def classes(self) -> int:
        """How many classes can be asked for; 0 = the model knows none."""
        known = self.decoder.config.net.classes
        return known or (0 if self.classifier is None else self.classifier.classes)

    def guide_with(self, classifier: Classifier) -> Pipeline:
        """Let ``class_`` be reached by this classifier's gradient (too); returns the pipeline.

        It is no part of what ``save`` writes. Raises ``CheckpointError`` if it knows other pictures,
        other noise levels or other classes than the decoder.
        """
        ours, theirs = self.decoder.config, classifier.config
        facts = {"image_size": (self.decoder.size, theirs.net.image_size),
                 "schedule": (ours.process.schedule, theirs.schedule),
                 "timesteps": (ours.process.timesteps, theirs.timesteps),
                 "classes": (ours.net.classes or theirs.net.classes, theirs.net.classes)}
        for name, (wanted, given) in facts.items():
            if wanted != given:
                raise CheckpointError(f"the classifier does not fit the decoder: its {name} is {given}, "
                                      f"the decoder's {wanted}")
        self.classifier = classifier.to(self.device)
        return self

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
        watch: Watch | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """The decoder's pictures [N,3,S,S] in [-1,1], from an embedding, text, classes, or nothing.

        negative: image embedding and text that guidance moves away from.
        classes:  int64 [N], each picture's own; None = ``options.class_`` for all.
        """
        sampling = _override(self.decoder.config.sampling, steps=options.steps,
                             guidance_scale=options.guidance_scale, sampler=options.sampler)
        classes = self._classes(len(seeds), options) if classes is None else classes
        conditions = self._conditions(self.decoder, len(seeds), image_embed, text, classes=classes)
        null = None if negative is None else self._conditions(self.decoder, len(seeds), *negative)
        objective = None
        if options.clip_guidance_scale and text is not None:
            objective = self._similarity(text, options.clip_guidance_scale)
        climb, scale = None, options.classifier_scale
        if self.classifier is not None and classes is not None and scale != 0:
            climb = self.classifier.climb(classes, 1.0 if scale is None else scale)
        noise = Noise(seeds, self.device)
        with self._autocast():
            steps = self.decoder.sample(conditions, noise, sampling, null, objective, climb)
            x = _walk(steps, "decoder", len(self.decoder.levels(sampling)) - 1, progress, watch)
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
                x = _walk(steps, f"upsampler {stage.size}", len(stage.levels(sampling)) - 1, progress)
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
        watch: Watch | None = None,
        **options: object,
    ) -> Image.Image | list[Image.Image]:
        """Draw pictures.

        prompt:     a text, or several; None for a model that takes none.
        n:          pictures a prompt.
        seed:       picture k of a prompt depends on (prompt, seed, k) alone, not on its batch.
        batch_size: pictures drawn at a time.
        watch:      gets every ``Step`` of the decoder; ``strip.film_strip`` shows a list of them.
        options:    fields of ``Options``: guidance_scale, prior_guidance_scale, clip_guidance_scale,
                    steps, prior_steps, upsampler_steps, sampler, negative_prompt, class_,
                    classifier_scale.

        Returns one picture for one prompt and n = 1, else a list, prompt by prompt. Raises
        ``ValueError`` for an empty prompt, a seed that is no integer, or an option out of range.
        """
        single = (prompt is None or isinstance(prompt, str)) and n == 1
        prompts = self._prompts(prompt)
        settings = parse_config(Options, options, source="the call")
        self._check_negative(settings)
        seed, n = _integer("seed", seed), _integer("n", n, 1)
        batch_size = _integer("batch_size", batch_size, 1)
        jobs = [(text, fold(seed, k)) for text in prompts for k in range(n)]
        pictures: list[Image.Image] = []
        for start in range(0, len(jobs), batch_size):
            texts, seeds = zip(*jobs[start:start + batch_size], strict=True)
            made = self._generate(list(texts), list(seeds), settings, progress, watch)
            pictures += [to_pil(picture) for picture in made.float().cpu()]
        return pictures[0] if single else pictures

    def _check_negative(self, options: Options) -> None:
        """Refuse a negative prompt that would do nothing."""
        if not options.negative_prompt:
            return
        if not self.takes_prompt:
            raise ValueError(f"the model {self.name} takes no prompt, nor a negative one")
        asked = [(self.decoder, options.guidance_scale), (self.prior, options.prior_guidance_scale)]
        scales = [stage.config.sampling.guidance_scale if scale is None else scale
                  for stage, scale in asked if stage is not None]
        if all(scale == 1 for scale in scales):
            raise ValueError("negative_prompt is what guidance moves away from, and there is no guidance: "
                             "give a guidance_scale other than 1")

    def _generate(self, texts: list[str | None], seeds: list[int], options: Options,
                  progress: Progress | None, watch: Watch | None) -> Tensor:
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
        picture = self.decode(seeds, embed, text, options, negative, progress, watch)
        return self.upsample(picture, seeds, embed, text, options, progress)

    def _autocast(self) -> torch.autocast:
        """bfloat16 on a GPU that has it. On a CPU float32 is as fast for a few pictures, and a picture
        is then the same in any batch."""
        return autocast(self.device, enabled=False if self.device.type == "cpu" else None)

    def _conditions(self, stage: Decoder, n: int, image_embed: Tensor | None, text: Text | None,
                    low_res: Tensor | None = None, classes: Tensor | None = None) -> Conditions:
        return stage.conditions(
            n, image_embed=image_embed if stage.takes_image else None,
            text=text.tokens if text is not None and stage.takes_text else None,
            text_mask=text.mask if text is not None and stage.takes_text else None,
            low_res=low_res, classes=classes)

    def _classes(self, n: int, options: Options) -> Tensor | None:
        """The class that is asked for, int64 [n]; None for none."""
        if options.classifier_scale is not None and self.classifier is None:
            raise ValueError("classifier_scale needs a classifier; Pipeline.guide_with takes one")
        if options.class_ is None:
            return None
        if not self.classes:
            raise ValueError(f"the model {self.name} takes no class")
        if options.class_ >= self.classes:
            raise ValueError(f"the classes of {self.name} are 0 to {self.classes - 1}, not {options.class_}")
        return torch.full((n,), options.class_, device=self.device)

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
        files = {"decoder": DECODER_FILE}
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
        """Read a model, strictly, onto ``device`` (None = a GPU if there is one).

        folder: a pipeline directory; or, of a decoder that needs no other stage, its checkpoint or
                the folder of its run.
        """
        folder = Path(folder)
        if folder.is_file() or (folder / DECODER_FILE).is_file() and not (folder / MODEL_FILE).exists():
            return cls._of_decoder(folder, device)
        manifest = read_manifest(folder)
        device = default_device() if device is None else torch.device(device)
        clip = None if manifest.clip is None else load_clip(str(folder / manifest.clip)).to(device)
        prior = None if manifest.prior is None else load_stage(folder / manifest.prior, "prior", device)
        decoder = load_stage(folder / manifest.decoder, "decoder", device)
        upsamplers = [load_stage(folder / file, "decoder", device) for file in manifest.upsamplers]
        return cls(decoder, prior, upsamplers, clip, manifest.name, manifest.description).eval()

    @classmethod
    def _of_decoder(cls, folder: Path, device: str | torch.device | None) -> Pipeline:
        """A decoder of nothing, or of classes, as a whole model: its checkpoint, or the folder with it."""
        path = folder if folder.is_file() else folder / DECODER_FILE
        decoder = load_stage(path, "decoder", default_device() if device is None else device)
        needs = {"CLIP's embeddings": decoder.takes_image, "text": decoder.takes_text,
                 "a smaller picture": decoder.config.low_res is not None}
        if any(needs.values()):
            needed = " and ".join(what for what, needed in needs.items() if needed)
            raise CheckpointError(f"{folder} is not a model: it holds no {MODEL_FILE}, only a decoder, which "
                                  f"takes {needed}; training.chain puts stages together (--assemble)")
        return cls(decoder, name=path.resolve().parent.name).eval()


def read_manifest(folder: str | Path) -> Manifest:
    """The ``model.json`` of a pipeline directory; raises ``CheckpointError`` if it is none."""
    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a model: it holds no {MODEL_FILE}, nor a {DECODER_FILE}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of another version; this version reads format {FORMAT}")
    return parse_config(Manifest, values, source=str(path))


def _override(sampling: Sampling, **changes: object) -> Sampling:
    return sampling.model_copy(update={k: v for k, v in changes.items() if v is not None})


def _walk(steps: Iterable[Step], name: str, total: int, progress: Progress | None,
          watch: Watch | None = None) -> Tensor:
    """Run a sampler to its end, telling ``progress`` and ``watch`` of every step."""
    for count, step in enumerate(steps, 1):
        x = step.x
        if watch is not None:
            watch(step)
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

