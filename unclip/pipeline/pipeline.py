"""Text -> CLIP -> prior -> decoder -> upsamplers -> picture, in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..config import parse_config
from ..data.images import to_pil
from ..diffusion.noise import Noise, fold
from ..diffusion.samplers import Step
from ..options import DEFAULTS, Options
from ..resources.devices import as_device, autocast, parse_dtype
from . import directory
from .canvas import Canvas, canvas_of
from .guiding import guides, guiding
from .model import Model
from .prompts import Prompts
from .request import check_request, class_asked, integer, override, prompts_of

Progress = Callable[[str, int, int], None]
"""(stage, steps done, steps in all), called after every step."""
Watch = Callable[[Step], None]
"""Called with every step of the decoder, of one batch of pictures after another."""


class Pipeline(Model):
    """A whole model, of the parts that ``Model`` names. ``generate`` draws; the methods before it are its
    steps, for who needs them."""

    @torch.no_grad()
    def sample_prior(
        self,
        text: Prompts,
        seeds: Sequence[int],
        options: Options = DEFAULTS,
        negative: Prompts | None = None,
    ) -> Tensor:
        """Image embeddings [N,D], as the decoder takes them: the candidate nearest to the text."""
        sampling = override(
            self.prior.config.sampling, steps=options.prior_steps, guidance_scale=options.prior_guidance_scale
        )
        if negative is None and not self.prior.config.net.null_text and sampling.guidance_scale != 1:
            negative = self._no_text(text)
        conditions = self.prior_conditions(text.repeat(sampling.candidates))
        null = None if negative is None else self.prior_conditions(negative.repeat(sampling.candidates))
        noise = Noise([fold(seed, k) for seed in seeds for k in range(sampling.candidates)], self.device)
        with self._at_work(self.prior), self._autocast():
            embed = self.prior.sample(conditions, noise, sampling, null)
        embed = embed.unflatten(0, (len(seeds), sampling.candidates))
        likeness = F.normalize(embed, dim=-1)
        best = torch.einsum("nkd,nd->nk", likeness, text.clip.embed.to(embed)).argmax(1)
        return embed[torch.arange(len(seeds)), best]

    @torch.no_grad()
    def decode(
        self,
        seeds: Sequence[int],
        image_embed: Tensor | None = None,
        text: Prompts | None = None,
        options: Options = DEFAULTS,
        negative: tuple[Tensor | None, Prompts | None] | None = None,
        progress: Progress | None = None,
        watch: Watch | None = None,
        classes: Tensor | None = None,
        canvas: Canvas | None = None,
    ) -> Tensor:
        """The decoder's pictures [N,3,S,S] in [-1,1], from an embedding, text, classes, or nothing.

        negative: image embedding and text that guidance moves away from.
        classes:  int64 [N], each picture's own; None = ``options.class_`` for all.
        canvas:   a picture to be inpainted, the same for all.
        """
        stage, n = self.decoder, len(seeds)
        sampling = override(
            stage.config.sampling,
            steps=options.steps,
            guidance_scale=options.guidance_scale,
            sampler=options.sampler,
        )
        classes = self._classes(n, options) if classes is None else classes
        if negative is None and text is not None and stage.config.null_text == "empty":
            negative = (None, self._no_text(text))
        noise, null = Noise(seeds, self.device), None
        with self._at_work(stage, *guiding(self, classes, options)):
            conditions = self.conditions(stage, n, image_embed, text, classes=classes, canvas=canvas)
            if negative is not None and sampling.guidance_scale != 1:
                null = self.conditions(
                    stage, n, *negative, canvas=canvas, classes=None if stage.config.drop_class else classes
                )
            with self._autocast(text=True):
                objective, climb = guides(self, text, classes, options)
            with self._autocast():
                steps = stage.sample(conditions, noise, sampling, null, objective, climb)
                x = _walk(steps, "decoder", len(stage.levels(sampling)) - 1, progress, watch)
        return stage.to_picture(x, conditions)

    @torch.no_grad()
    def upsample(
        self,
        picture: Tensor,
        seeds: Sequence[int],
        image_embed: Tensor | None = None,
        text: Prompts | None = None,
        options: Options = DEFAULTS,
        progress: Progress | None = None,
        classes: Tensor | None = None,
        canvas: Canvas | None = None,
    ) -> Tensor:
        """Enlarge the decoder's pictures through every upsampler: [N,3,S,S] in [-1,1]."""
        classes = self._classes(len(seeds), options) if classes is None else classes
        for number, stage in enumerate(self.upsamplers):
            sampling = override(stage.config.sampling, steps=options.upsampler_steps)
            noise = Noise([fold(seed, 1, number) for seed in seeds], self.device)
            with self._at_work(stage):
                conditions = self.conditions(stage, len(seeds), image_embed, text, picture, classes, canvas)
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
        image: Image.Image | str | Path | None = None,
        mask: Image.Image | str | Path | None = None,
        progress: Progress | None = None,
        watch: Watch | None = None,
        **options: object,
    ) -> Image.Image | list[Image.Image]:
        """Draw pictures.

        prompt:     a text, or several; None for a model that takes none.
        n:          pictures a prompt.
        seed:       picture k of a prompt depends on (prompt, seed, k) alone, not on its batch.
        batch_size: pictures drawn at a time.
        image:      a picture, or its file, of which a part is painted anew, by a model that inpaints.
        mask:       which part: a picture of the same size, white = painted anew, black = kept.
        watch:      gets every ``Step`` of the decoder; ``strip.film_strip`` shows a list of them.
        options:    fields of ``Options``: guidance_scale, prior_guidance_scale, clip_guidance_scale,
                    steps, prior_steps, upsampler_steps, sampler, negative_prompt, class_,
                    classifier_scale.

        Returns one picture for one prompt and n = 1, else a list, prompt by prompt. Raises
        ``ValueError`` for an empty prompt, a seed that is no integer, or an option out of range.
        """
        single = (prompt is None or isinstance(prompt, str)) and n == 1
        prompts = prompts_of(self, prompt)
        settings = parse_config(Options, options, source="the call")
        if (image is None) != (mask is None):
            raise ValueError("inpainting takes both an image and a mask, of which white is painted anew")
        check_request(self, settings, inpaints=image is not None)
        canvas = None if image is None else canvas_of(image, mask)
        seed, n = integer("seed", seed), integer("n", n, 1)
        batch_size = integer("batch_size", batch_size, 1)
        jobs = [(text, fold(seed, k)) for text in prompts for k in range(n)]
        pictures: list[Image.Image] = []
        for start in range(0, len(jobs), batch_size):
            texts, seeds = zip(*jobs[start : start + batch_size], strict=True)
            made = self._generate(list(texts), list(seeds), settings, canvas, progress, watch)
            pictures += [to_pil(picture) for picture in made.float().cpu()]
        return pictures[0] if single else pictures

    def _generate(
        self,
        texts: list[str | None],
        seeds: list[int],
        options: Options,
        canvas: Canvas | None,
        progress: Progress | None,
        watch: Watch | None,
    ) -> Tensor:
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
        picture = self.decode(seeds, embed, text, options, negative, progress, watch, canvas=canvas)
        return self.upsample(picture, seeds, embed, text, options, progress, canvas=canvas)

    def _classes(self, n: int, options: Options) -> Tensor | None:
        """The class that is asked for, int64 [n]; None for none."""
        wanted = class_asked(self, options)
        return None if wanted is None else torch.full((n,), wanted, device=self.device)

    def _autocast(self, text: bool = False) -> torch.autocast:
        """bfloat16 on a GPU that has it, and for weights of bfloat16. On a CPU float32 is as fast for a few
        pictures, and a picture is then the same in any batch. text: a text is to be encoded, once."""
        if self.decoder.network.out.weight.dtype == torch.bfloat16:
            return autocast(self.device, enabled=True)
        return autocast(self.device, enabled=False if text or self.device.type == "cpu" else None)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write a pipeline directory that ``Pipeline.load`` reads; floats are stored as ``dtype``."""
        directory.write(self, Path(folder), dtype)
        return Path(folder)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        offload: bool = False,
    ) -> Pipeline:
        """Read a model, strictly; device, dtype and offload as in ``place``.

        folder: a pipeline directory; or, of a decoder that needs no other stage, its checkpoint or
                the folder of its run.
        """
        dtype = parse_dtype(dtype)
        parts = directory.read(Path(folder), torch.device("cpu") if offload else as_device(device), dtype)
        return cls(**parts).eval().place(device, dtype, offload)


def _walk(
    steps: Iterable[Step], name: str, total: int, progress: Progress | None, watch: Watch | None = None
) -> Tensor:
    """Run a sampler to its end, telling ``progress`` and ``watch`` of every step."""
    for count, step in enumerate(steps, 1):
        x = step.x
        if watch is not None:
            watch(step)
        if progress is not None:
            progress(name, count, total)
    return x
