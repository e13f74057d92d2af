"""Text -> CLIP -> prior -> decoder -> upsamplers -> picture, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, Unpack, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..data.images import to_pil
from ..diffusion.denoiser import Denoise
from ..diffusion.guidance import bind
from ..diffusion.noise import Begun, Noise, fold
from ..diffusion.samplers import Step
from ..diffusion.tiles import Tile, Tiles
from ..options import DEFAULTS, Asked, Options
from ..provenance import stamp
from ..resources.devices import autocast
from ..stages import Conditions, Decoder, Sampling
from ..stages.inpaint import put_back
from .checks import override
from .guiding import guides, guiding
from .model import Model
from .prompts import Prompts, needed
from .request import Progress, Watch, Wish, classes_of, origin_of, records, sampling_of, wish_of


class Drawing(Model):
    """A model at work: the steps from a ``Wish`` to its pictures."""

    @torch.no_grad()
    def sample_prior(
        self,
        text: Prompts,
        seeds: Sequence[int],
        options: Options = DEFAULTS,
        negative: Prompts | None = None,
    ) -> Tensor:
        """Image embeddings [N,D], as the decoder takes them: the candidate nearest to the text.

        Raises ``ValueError`` if it makes numbers that are none, as all steps of drawing do.
        """
        prior = needed(self.prior, "a prior")
        sampling = override(
            prior.config.sampling, steps=options.prior_steps, guidance_scale=options.prior_guidance_scale
        )
        if negative is None and not prior.config.net.null_text and sampling.guidance_scale != 1:
            negative = self._no_text(text)
        conditions = self.prior_conditions(text.repeat(sampling.candidates))
        null = None if negative is None else self.prior_conditions(negative.repeat(sampling.candidates))
        noise = Noise([fold(seed, k) for seed in seeds for k in range(sampling.candidates)], self.device)
        with self._at_work(prior), self._autocast():
            embed = prior.sample(conditions, noise, sampling, null)
        embed = _sound(embed, "prior", prior).unflatten(0, (len(seeds), sampling.candidates))
        likeness = F.normalize(embed, dim=-1)
        best = torch.einsum("nkd,nd->nk", likeness, needed(text.clip, "its CLIP").embed.to(embed)).argmax(1)
        return embed[torch.arange(len(seeds)), best]

    def understood(self, wish: Wish) -> Wish:
        """A batch with its texts encoded, and with the prior's or a mixture's embeddings if it has none."""
        n, blend, negative = len(wish), wish.blend, wish.options.negative_prompt
        said = [] if wish.texts is None else [wish.texts]
        said += [[text] * n for text in ([] if blend is None else blend.texts)]
        said += [[negative] * n] if negative else []
        both = self.encode_text([text for texts in said for text in texts]) if said else None  # lengths agree
        if both is not None and both.clip is not None and self.clip is not None:
            _sound(both.clip.embed, "CLIP", self.clip)
        parts = [] if both is None else [both[k * n : (k + 1) * n] for k in range(len(said))]
        text = None if wish.texts is None else parts.pop(0)
        away = parts.pop() if negative else None

        def of_prior(text: Prompts, away: Prompts | None = None) -> Tensor:
            return self.sample_prior(text, wish.seeds, wish.options, away)

        embed, unwanted = wish.embed, None
        if self.prior is not None and embed is None:
            embed = None if text is None else of_prior(text, away)
            if blend is not None:
                embed = blend.embed(embed, (of_prior(part, away) for part in parts), n)
        if away is not None:
            unwanted = (None if text is None else away, None if self.prior is None else of_prior(away))
        return replace(wish, text=text, embed=embed, unwanted=unwanted)

    @torch.no_grad()
    def decode(self, wish: Wish) -> Tensor:
        """The decoder's pictures [N,3,S,S] in [-1,1] of a batch, as ``understood`` gives it."""
        stage, options = self.decoder, wish.options
        sampling = sampling_of(self, stage, options)
        classes = classes_of(self, wish)
        noise = Noise(wish.seeds, self.device)
        if wish.start is not None:
            noise = Begun(wish.start / sampling.noise_scale, wish.seeds, self.device)
        with self._at_work(stage, *guiding(self, classes, options)):
            conditions = self._conditions(stage, wish, classes)
            null = None if sampling.guidance_scale == 1 else self._null(stage, wish, classes)
            with self._autocast(text=True):
                objective, climb = guides(self, wish, classes)
            led = {"objective": objective, "climb": climb, "weaker": self._weaker(wish, classes, sampling)}
            return self._paint(stage, "decoder", wish, conditions, noise, sampling, null, **led)

    def _weaker(self, wish: Wish, classes: Tensor | None, sampling: Sampling) -> tuple[Denoise, float] | None:
        """The weaker decoder, told the same, and how far away from it; None if it changes nothing."""
        if self.weaker is None or sampling.autoguidance_scale == 1:
            return None
        with self._autocast(text=True):
            told = self.weaker.encode(self._conditions(self.weaker, wish, classes))
        return bind(self.weaker.denoiser, **told), sampling.autoguidance_scale

    @torch.no_grad()
    def upsample(self, picture: Tensor, wish: Wish, tiles: int = 16) -> Tensor:
        """Enlarge the decoder's pictures of a batch through every upsampler: [N,3,S,S] in [-1,1].

        Pictures [N,3,H,W] of another size than the decoder's go through those that ``wish.enlarge`` names:
        H and W are at least the first one's; what is larger is drawn in tiles, so many at a time.
        """
        classes, alone = classes_of(self, wish), wish.enlarge is not None
        for number, stage in list(enumerate(self.upsamplers))[wish.enlarge or 0 :]:
            name, sampling = f"upsampler {stage.size}", sampling_of(self, stage, wish.options)
            sampling = override(sampling, sampler=wish.options.sampler) if alone else sampling
            noise = Noise([fold(seed, 1, number) for seed in wish.seeds], self.device)
            with self._at_work(stage):
                conditions = self._conditions(stage, wish, classes, picture)
                if alone and max(conditions["base"].shape[2:]) > stage.size:
                    picture = self._paint_tiles(stage, name, wish, conditions, noise, sampling, tiles)
                else:
                    picture = self._paint(stage, name, wish, conditions, noise, sampling)
        return picture

    def _paint_tiles(
        self,
        stage: Decoder,
        name: str,
        wish: Wish,
        conditions: Conditions,
        noise: Noise,
        sampling: Sampling,
        most: int,
    ) -> Tensor:
        """Pictures [N,3,H,W] in [-1,1] of an upsampler beyond its size, of tiles that agree at every step."""
        base = conditions["base"]
        n, _, height, width = base.shape
        tiles = Tiles(n, height, width, stage.size, stage.factor)
        wide, scale = {kind.joined for kind in stage.kinds}, sampling.guidance_scale

        def part(told: Conditions, some: Sequence[Tile]) -> Conditions:
            rows = [tile.picture for tile in some]
            return {
                key: tiles.cut(value, some) if key in wide else value[rows] for key, value in told.items()
            }

        def of(some: Sequence[Tile]) -> Denoise:
            return stage.denoise(part(told, some), part(null, some), scale, **sampling.of_guidance)

        with self._autocast():
            # Once, and not for every tile.
            told, null = (stage.encode(one) for one in (conditions, stage.null(conditions)))
            denoise = tiles.denoise(of, stage.schedule, most)
            steps = stage.run(denoise, tuple(base.shape[1:]), noise, sampling)
            x = _walk(steps, name, stage.count(sampling), wish.progress, wish.watch)
        return stage.to_picture(_sound(x, name, stage), conditions)

    def _paint(
        self,
        stage: Decoder,
        name: str,
        wish: Wish,
        conditions: Conditions,
        noise: Noise,
        sampling: Sampling,
        null: Conditions | None = None,
        **led: Any,
    ) -> Tensor:
        """A stage's pictures [N,3,S,S] in [-1,1], with what is known of them in its place.

        led: the guides, as ``Decoder.sample`` takes them.
        """
        origin = origin_of(self, stage, wish, conditions)
        more = {key: value for key, value in dict(led, origin=origin).items() if value is not None}
        watch = wish.watch if stage is self.decoder or wish.enlarge is not None else None
        if watch is not None and stage.autoencoder is not None:
            watch = _decoded(watch, stage, conditions)
        with self._autocast():
            steps = stage.sample(conditions, noise, sampling, null, **more)
            x = _walk(steps, name, stage.count(sampling, origin), wish.progress, watch)
        picture = stage.to_picture(_sound(x, name, stage), conditions)
        return picture if wish.canvas is None else put_back(picture, wish.canvas.known(picture))

    def _conditions(
        self, stage: Decoder, wish: Wish, classes: Tensor | None, low_res: Tensor | None = None
    ) -> Conditions:
        return self.conditions(stage, len(wish), wish.embed, wish.text, low_res, classes, wish.canvas)

    def _null(self, stage: Decoder, wish: Wish, classes: Tensor | None) -> Conditions | None:
        """What guidance moves away from; None = nothing at all, as the stage has learned it."""
        unwanted = wish.unwanted
        if unwanted is None and stage.config.null_text == "empty":
            unwanted = (None if wish.text is None else self._no_text(wish.text), None)
        if unwanted is None:
            return None
        away = replace(wish, text=unwanted[0], embed=unwanted[1])
        return self._conditions(stage, away, None if stage.config.drop_class else classes)

    def embed_prompt(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        **options: Unpack[Asked],
    ) -> Tensor:
        """The prior alone: image embeddings [N,D] of ``n`` pictures of each prompt, as in ``generate``.

        options: prior_steps, prior_guidance_scale, negative_prompt. Raises ``ValueError`` as ``generate``
        does, and for a model without a prior.
        """
        if self.prior is None:
            raise ValueError(f"the model {self.name} has no prior, which makes embeddings of prompts")
        wish = wish_of(self, prompt, n=n, seed=seed, **options)
        parts = (self.understood(part).embed for part in wish.batches(batch_size))
        return torch.cat([needed(embed, "a prior") for embed in parts])

    def drawn(self, wish: Wish, batch_size: int = 16) -> list[Image.Image]:
        """All pictures of a wish, ``batch_size`` at a time."""
        return list(drawn(self, wish.batches(batch_size)))

    def _autocast(self, text: bool = False) -> torch.autocast:
        """bfloat16 on a GPU that has it, and for weights of bfloat16. On a CPU float32 is as fast for a few
        pictures, and a picture is then the same in any batch. text: a text is to be encoded, once."""
        if self.decoder.network.out.weight.dtype == torch.bfloat16:
            return autocast(self.device, enabled=True)
        return autocast(self.device, enabled=False if text or self.device.type == "cpu" else None)


def drawn(
    pipeline: Drawing,
    wishes: Iterable[Wish],
    timed: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Image.Image]:
    """The pictures of wishes in turn; each wish is one batch (``Wish.batches``), drawn when it is reached.

    timed: called with "prior", "decoder" and "upsamplers" for what each stage of a batch is done in.
    """
    for asked in wishes:
        if asked.sketch is not None and asked.sketch[1] == 0:  # nothing is drawn over it
            pictures = asked.sketch[0].expand(len(asked), -1, -1, -1).cpu()
        else:
            with timed("prior"):
                wish = pipeline.understood(asked)
            with timed("decoder"):
                pictures = pipeline.decode(wish)
            with timed("upsamplers"):
                pictures = pipeline.upsample(pictures, wish).float().cpu()
        made = records(pipeline, asked, (pictures.shape[-1],) * 2)
        yield from map(stamp, map(to_pil, pictures), made) if made else map(to_pil, pictures)


def _decoded(watch: Watch, stage: Decoder, conditions: Conditions) -> Watch:
    """The same, of steps of latents: it is shown pictures, each decoded when it is looked at."""

    class Decoded:
        def __init__(self, step: Step) -> None:
            self.step, self.t = step, step.t

        @cached_property
        def x(self) -> Tensor:
            return stage.to_picture(self.step.x, conditions)

        @cached_property
        def x0(self) -> Tensor:
            return stage.to_picture(self.step.x0, conditions)

    return lambda step: watch(cast(Step, Decoded(step)))


def _sound(x: Tensor, name: str, part: nn.Module) -> Tensor:
    """What a part made, if it is numbers; else ``ValueError``, before it becomes a picture."""
    if x.isfinite().all():
        return x
    weights = part.state_dict().items()
    damaged = next((key for key, value in weights if not value.isfinite().all()), None)
    why = (
        "guidance that is too strong does that, and so does bfloat16: lower the guidance scales, take other "
        "steps, or keep the weights in float32"
        if damaged is None
        else f"its weights are damaged ({damaged}): fetch the model anew, or go back to an earlier checkpoint"
    )
    raise ValueError(f"the {name} made numbers that are infinite or none, which are no picture; {why}")


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
