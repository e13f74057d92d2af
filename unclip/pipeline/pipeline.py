"""A whole model as one object: what it is asked for, and the folder that it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from PIL import Image
from torch import Tensor

from ..options import Asked
from ..resources.devices import as_device, parse_dtype
from ..stages import AnyPrior
from ..stages.conditions import kinds_of
from . import directory, edits
from .blend import ImagePrompt
from .checks import prior_fits
from .drawing import Drawing
from .request import Followed, Progress, Watch, wish_of


class Pipeline(Drawing):
    """A whole model, of the parts that ``Model`` names, and what it can do; its steps are ``Drawing``'s."""

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        n: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        image: Image.Image | str | Path | None = None,
        mask: Image.Image | str | Path | None = None,
        image_embed: Tensor | None = None,
        image_prompt: ImagePrompt | None = None,
        progress: Progress | None = None,
        watch: Watch | None = None,
        **options: Unpack[Asked],
    ) -> Image.Image | list[Image.Image]:
        """Draw pictures.

        prompt:     a text, or several; None for a model that takes none.
        n:          pictures a prompt.
        seed:       any integer; picture k of a prompt depends on (prompt, seed, k) alone, not on its batch.
        batch_size: pictures drawn at a time.
        image:      a picture, or its file, of which a part is painted anew (see ``inpaint``).
        mask:       which part: a picture of the same size, white = painted anew, black = kept.
        image_embed: CLIP's embeddings of pictures, in place of the prior's: [N,D] of all pictures beside
                    prompts; without one, n pictures of each are drawn.
        image_prompt: a picture, of PIL or a file, that is drawn in place of a prompt, or beside one; or
                    several, and texts (what does not end as a picture's file), each with a weight or not:
                    [(picture, 0.7), ("a dog", 0.3)]. A prompt beside them is one of them, and what has no
                    weight has 1. Their image embeddings, CLIP's of the middle square of pictures and the
                    prior's of texts, are mixed on the sphere (see ``blend.spherical_mean``; Buss & Fillmore
                    2001; of two Ramesh et al. 2022, section 3.2) in the place of the prior's; the decoder
                    reads the words of the prompt alone. A text alone is the prompt.
        watch:      gets every ``Step`` of the decoder; ``strip.film_strip`` shows a list of them.
        options:    the fields of ``Options``, which says what each does.

        Returns one picture for one prompt and n = 1, else a list, prompt by prompt. Raises
        ``ValueError`` for an empty prompt, a seed that is no integer, or an option out of range, before
        work starts; and for a stage that makes numbers that are none.
        """
        single = (prompt is None or isinstance(prompt, str)) and n == 1
        wish = wish_of(
            self,
            prompt,
            n=n,
            seed=seed,
            image=image,
            mask=mask,
            image_embed=image_embed,
            image_prompt=image_prompt,
            progress=progress,
            watch=watch,
            **options,
        )
        pictures = self.drawn(wish, batch_size)
        return pictures[0] if single and len(pictures) == 1 else pictures

    def vary(
        self,
        picture: Image.Image | str | Path,
        n: int = 4,
        *,
        spread: float = 1.0,
        seed: int = 0,
        batch_size: int = 16,
        **options: Unpack[Followed],
    ) -> list[Image.Image]:
        """``n`` pictures of what CLIP sees in one (Ramesh et al. 2022, section 3.1).

        picture: of PIL or a file, any mode and size, upright by its EXIF; of it the middle square, on white.
        spread:  0 to 1, how far each one's noise is turned from the picture's own towards fresh noise: at 0
                 the picture comes back at the decoder's size, and upsamplers draw its detail anew; at 1
                 its embedding alone is kept.
        options: as in ``generate``; DDIM, 50 steps and no guidance unless told otherwise.

        Raises ``ValueError`` for a model whose CLIP or decoder knows no pictures, and for ddpm.
        """
        return self.drawn(edits.vary(self, picture, n, spread, seed, **options), batch_size)

    def interpolate(
        self,
        a: Image.Image | str | Path,
        b: Image.Image | str | Path,
        n: int = 5,
        *,
        seed: int = 0,
        batch_size: int = 16,
        **options: Unpack[Followed],
    ) -> list[Image.Image]:
        """``n`` pictures on the way from a to b, the ends among them (Ramesh et al. 2022, section 3.2).

        Embeddings and noises each go along their great circle. A picture, or a
        file of one (.png, .jpg, ...), brings its own, as in ``vary`` with spread 0; any other text has the
        prior's embedding, and the seed's noise. Raises ``ValueError`` as ``vary`` does, and for n below 2.
        """
        return self.drawn(edits.interpolate(self, a, b, n, seed, **options), batch_size)

    def edit(
        self,
        picture: Image.Image | str | Path,
        source: str,
        target: str,
        strength: float = 0.3,
        *,
        n: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        **options: Unpack[Followed],
    ) -> Image.Image | list[Image.Image]:
        """The picture, moved as one text differs from another (Ramesh et al. 2022, section 3.3, text diffs).

        Its embedding z is turned by slerp(z, d, strength) towards d = norm(z_target - z_source), the
        difference of the texts' embeddings, and drawn from the picture's own noise, as in ``vary``.

        source:   what the picture shows, in words that differ from target as it is to change.
        strength: 0 to 1; 0 is the picture's own reconstruction, and the paper goes to 0.25 to 0.5.
        n:        more than one: that many pictures on the way, from 0 to ``strength``.

        Raises ``ValueError`` as ``vary`` does, and for texts that are the same to CLIP.
        """
        wish = edits.edit(self, picture, source, target, strength, n, seed, **options)
        pictures = self.drawn(wish, batch_size)
        return pictures[0] if n == 1 else pictures

    def redraw(
        self,
        picture: Image.Image | str | Path,
        prompt: str | Sequence[str] | None = None,
        strength: float = 0.6,
        *,
        n: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        image_prompt: ImagePrompt | None = None,
        **options: Unpack[Followed],
    ) -> Image.Image | list[Image.Image]:
        """The picture, drawn over as a prompt says (SDEdit: Meng et al. 2022, algorithm 1).

        Every stage begins with x_t = alpha_t picture + sigma_t noise at t = strength T, in place of noise; an
        upsampler with the picture's detail on what the stage before it drew.

        picture:  as in ``vary``.
        prompt:   what is to be seen, as in ``generate``; None for a model that takes none;
                  image_prompt likewise.
        strength: 0 to 1; 0 is the picture itself, 1 is ``generate``.

        Returns what ``generate`` does, and raises ``ValueError`` as it does.
        """
        single = (prompt is None or isinstance(prompt, str)) and n == 1
        wish = edits.redraw(self, picture, prompt, strength, n, seed, image_prompt, **options)
        pictures = self.drawn(wish, batch_size)
        return pictures[0] if single else pictures

    def inpaint(
        self,
        picture: Image.Image | str | Path,
        mask: Image.Image | str | Path,
        prompt: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Image.Image | list[Image.Image]:
        """``generate`` of a picture of which only a part is drawn; the rest of it is kept exactly.

        A decoder that was trained for it is told of the rest (Nichol et al. 2021, GLIDE, section 4.3). By any
        other the hole is filled as RePaint does it (Lugmayr et al. 2022, algorithm 1): what is known is put
        back at every noise level, and each step gone back and taken again ``resamplings`` times.

        mask:   of the picture's size, white = drawn anew, black = kept.
        prompt: what the whole picture is to show.
        """
        return self.generate(prompt, image=picture, mask=mask, **options)

    def upscale(
        self,
        picture: Image.Image | str | Path,
        prompt: str | None = None,
        *,
        seed: int = 0,
        batch_size: int = 16,
        **options: Unpack[Followed],
    ) -> Image.Image:
        """The picture, enlarged by the upsamplers (the cascade of Ho et al. 2021; unCLIP, section 2.3).

        It enters their chain at the first one whose input is not smaller than it, or at the last: icons,
        16 -> 64 -> 256, enlarges by 4 what has more than 16 pixels a side. A picture smaller than that
        input is mirrored at its edges, and cut out after. A larger one is drawn in tiles of that size, at
        least a quarter of each common to the next, from one noise: at every step the x0 of all is averaged
        by windows that end in 0 at a tile's border, so that there is no seam (MultiDiffusion: Bar-Tal et al.
        2023, eq. 5). A picture of that size exactly is what ``generate``'s upsamplers make of it.

        picture:    of PIL or a file, any mode and size, upright by its EXIF, on white; whole.
        prompt:     what it shows, for upsamplers that take words, or an embedding; without one, those that
                    take an embedding have CLIP's of the picture's middle square.
        batch_size: tiles drawn at a time, which bounds the memory beyond a few numbers a pixel.
        options:    upsampler_steps, sampler (here that of the upsamplers), class_; those of the prior, if
                    it is asked; progress and watch (of the upsamplers' steps).

        Raises ``ValueError``, before work starts, for a model without upsamplers, a result of more than 4096
        x 4096 pixels, and options that would change nothing.
        """
        return edits.upscale(self, picture, prompt, seed, batch_size, **options)

    def with_prior(self, prior: AnyPrior) -> Self:
        """Make embeddings of prompts by another prior; returns the pipeline.

        Raises ``CheckpointError`` if it is not of the same CLIP.
        """
        prior_fits(self, prior)
        self.prior = prior if self._lends_to else prior.to(self.device)
        return self

    def at_size(self, size: int) -> Self:
        """Draw pictures of ``size`` x ``size`` pixels; returns the pipeline. A network knows no size, but
        draws best at the one that it was trained for.

        Raises ``ValueError`` for a size that its network cannot draw, and for a model with upsamplers, or
        with what guides it by pictures of one size.
        """
        fixed = [self.classifier, self.guide, self.weaker, *self.upsamplers]
        if size != self.size and any(part is not None for part in fixed):
            raise ValueError(
                f"the model {self.name} draws {self.size} pixels: what follows its decoder, or guides it, "
                "knows no other size"
            )
        if size != self.size:
            self.decoder.config = self.decoder.config.at_size(size)
            self.decoder.kinds = kinds_of(self.decoder.config)
        return self

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
        downloads: bool = False,
    ) -> Pipeline:
        """Read a model, strictly; device, dtype and offload as in ``place``, downloads as in ``load_clip``.

        folder: a pipeline directory; or, of a decoder that needs no other stage, its checkpoint or
                the folder of its run.
        """
        dtype = parse_dtype(dtype)
        to = torch.device("cpu") if offload else as_device(device)
        parts = directory.read(Path(folder), to, dtype, downloads)
        return cls(**parts).eval().place(device, dtype, offload)
