"""The decoder: pictures from embeddings, text, classes or nothing; with ``low_res``, an upsampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..diffusion import guidance
from ..diffusion.noise import Noise, Random
from ..diffusion.samplers import Step
from ..nets.autoencoder import Autoencoder
from ..nets.text import TextTransformer
from ..nets.unet import UNet, either
from .condition import Condition, Draws, Samples
from .conditions import KINDS, Class, ImageEmbedding, Text, TextVector, Tokens, check_channels, kinds_of
from .config import DecoderStageConfig, LowRes, Sampling
from .inpaint import known_at, put_back
from .low_res import corrupt, enlarge
from .origin import Origin
from .stage import Conditions, Objective, Stage


class Decoder(Stage):
    """Conditions -> picture [N,3,S,S]; with ``config.low_res`` it enlarges a smaller picture.

    The input's channels are [noised picture, known picture and mask, enlarged smaller picture].
    """

    config_class = DecoderStageConfig
    config: DecoderStageConfig
    network: UNet

    def __init__(self, config: DecoderStageConfig) -> None:
        kinds = kinds_of(config)
        check_channels(config, kinds)
        super().__init__(config, UNet(config.net), config.net.image_embed_dim or 0)
        self.kinds = kinds  # of condition that it takes
        self.text = None if config.text is None else TextTransformer(config.text)
        # It is not trained: what it makes of pictures is what the network learns.
        self.autoencoder = None if config.autoencoder is None else Autoencoder(config.autoencoder)
        self.last = UNet(config.net) if config.last_network else None  # takes the step from level 1 to data

    @property
    def size(self) -> int:
        """Height and width of the pictures, in pixels."""
        return self.config.size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what the process diffuses: a picture's, or its latents'."""
        return self.config.channels, self.config.net.image_size, self.config.net.image_size

    def takes(self, *kinds: type[Condition]) -> bool:
        """Whether it is told something of any of these kinds."""
        return any(isinstance(kind, kinds) for kind in self.kinds)

    @property
    def takes_image(self) -> bool:
        return self.takes(ImageEmbedding)

    @property
    def takes_text(self) -> bool:
        """Whether it takes CLIP's text tokens."""
        return self.takes(Text)

    @property
    def takes_text_embed(self) -> bool:
        """Whether it takes CLIP's one vector for a text."""
        return self.takes(TextVector)

    @property
    def takes_tokens(self) -> bool:
        """Whether it takes the ids of a tokenizer, for a text transformer of its own."""
        return self.takes(Tokens)

    @property
    def takes_prompt(self) -> bool:
        return self.takes(Text, TextVector, Tokens)

    @property
    def takes_class(self) -> bool:
        return self.takes(Class)

    @property
    def takes_clip(self) -> bool:
        return any(kind.tower is not None for kind in self.kinds)

    def call_network(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Encode tokens that are not yet (in training, with a gradient), and join pictures to the input."""
        inputs = self.encode(conditions)
        joined = [inputs.pop(kind.joined) for kind in self._kinds_in(inputs) if kind.joined]
        x = torch.cat([x, *joined], dim=1) if joined else x
        return (
            self.network(x, t, **inputs)
            if self.last is None
            else either(self.network, self.last, x, t, inputs)
        )

    def encode(self, conditions: Conditions) -> Conditions:
        """The same with what the text transformer makes of "tokens", if there are any: "text", "text_embed".

        Padding is attended to (it is learned, and so the empty text), hence there is no mask of the text.
        """
        inputs = dict(conditions)
        if self.text is not None and "tokens" in inputs:
            vector, states = self.text(inputs.pop("tokens"), inputs.pop("token_mask"))
            inputs |= {"text_embed": vector, "text": states}
        return inputs

    def conditions(
        self,
        n: int,
        image_embed: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        **values: Tensor | None,
    ) -> Conditions:
        """What the network is told about ``n`` pictures; what it does not take is left out.

        image_embed [N,D] of length 1; text [N,L,W] with text_mask bool [N,L], and text_embed [N,D], all
        CLIP's; tokens int64 [N,L] with token_mask bool [N,L], for a text transformer of the stage's own;
        classes int64 [N]; low_res [N,3,s,s] in [-1,1]; image [N,3,S,S] in [-1,1] with mask [N,1,S,S],
        1 = known, to be inpainted; and those of other ``KINDS``. None = not given (the network's "nothing").

        Raises ``ValueError`` without a low-resolution picture or a class that the stage cannot do without.
        """
        values.update(image_embed=image_embed, text=text, text_mask=text_mask)
        unknown = set(values).difference(*(kind.names for kind in KINDS))
        if unknown:
            raise TypeError(f"no kind of condition is called {' or '.join(sorted(unknown))}")
        return {key: value for kind in self.kinds for key, value in kind.inputs(values, n, self).items()}

    def conditions_of(self, samples: Samples, n: int) -> Conditions:
        """What the network is told about ``n`` samples, of which only that is asked for."""
        return self.conditions(n, **{k: v for kind in self.kinds for k, v in kind.seen(samples).items()})

    def blank_conditions(self, n: int, side: int | None = None) -> Conditions:
        """Conditions of the right shapes, all of zeros, for ``n`` pictures of ``side`` pixels (None = its
        own size): to count on the meta device what a call takes."""
        device = self.embed_mean.device
        blanks = [kind.blank(n, side or self.size, device) for kind in self.kinds]
        return self.conditions(n, **{key: value for values in blanks for key, value in values.items()})

    def null(self, conditions: Conditions) -> Conditions:
        """The same with nothing to go by but the low-resolution picture and what is known of this one."""
        empty = dict(conditions)
        for kind in self._kinds_in(conditions):
            empty |= kind.null(conditions)
        return empty

    def drop(self, conditions: Conditions, generator: Random = None) -> Conditions:
        """Training only: leave each condition out on its own chance, add noise to the embedding, and
        forget a part of what is known of the picture."""
        left, draws = dict(conditions), Draws(generator)
        for kind in self._kinds_in(conditions):
            left |= kind.drop(conditions, draws)
        return left

    def _kinds_in(self, conditions: Conditions) -> list[Condition]:
        return [kind for kind in self.kinds if kind.is_in(conditions)]

    @property
    def _low_res(self) -> LowRes:
        if self.config.low_res is None:
            raise ValueError("this decoder is no upsampler: it has no low_res")
        return self.config.low_res

    @property
    def factor(self) -> int:
        """By which an upsampler enlarges."""
        return self.size // self._low_res.size

    def corrupt(self, picture: Tensor, generator: Random = None) -> Tensor:
        """Training only: [N,3,f*s,f*s] -> [N,3,s,s], spoilt as ``low_res`` says, so that the upsampler
        mends that; f is its factor (crops pass too)."""
        return corrupt(picture, self.factor, self._low_res, generator)

    def enlarge(self, low_res: Tensor) -> Tensor:
        """[N,3,s,s] -> [N,3,f*s,f*s]; f is the stage's ``factor`` (crops pass too)."""
        return enlarge(low_res, self._low_res, self.factor)

    def to_data(self, picture: Tensor, conditions: Conditions) -> Tensor:
        """Picture in [-1,1] -> what the process diffuses (itself, the scaled residual, or its latents)."""
        if self.autoencoder is not None:
            with torch.no_grad():
                return self.autoencoder.encode(picture)
        scale = self.config.low_res.residual_scale if self.config.low_res else None
        return picture if scale is None else (picture - conditions["base"]) / scale

    def to_picture(self, x0: Tensor, conditions: Conditions) -> Tensor:
        """The inverse of ``to_data``, clamped to [-1,1]; what is known of the picture is as it was given."""
        if self.autoencoder is not None:
            picture = self.autoencoder.decode(put_back(x0, conditions.get("known")))
            return guidance.static_threshold(picture)
        return self._in_range(x0, conditions, guidance.static_threshold)

    def _in_range(self, x0: Tensor, conditions: Conditions, limit: Callable[[Tensor], Tensor]) -> Tensor:
        scale = self.config.low_res.residual_scale if self.config.low_res else None
        picture = x0 if scale is None else x0 * scale + conditions["base"]
        # GLIDE's notebook puts the known pixels back before it clamps; with a mask of zeros and ones and
        # known pixels within the range it is the same, and no threshold can move them.
        return put_back(limit(picture), conditions.get("known"))

    def denoise(
        self,
        conditions: Conditions,
        null: Conditions,
        guidance_scale: float,
        objective: Objective | None = None,
        guidance_rescale: float = 0.0,
        threshold: str = "static",
        climb: guidance.GradFn | None = None,
        guidance_interval: tuple[float, float] | None = None,
        apg: tuple[float, float, float] | None = None,
        weaker: tuple[guidance.Denoise, float] | None = None,
    ) -> guidance.Denoise:
        """The guided denoiser, its x0 kept to pictures in [-1,1] as ``Sampling.threshold`` says.

        objective: pictures [N,3,S,S] in [-1,1] -> log-probability [N], climbed by its gradient.
        climb: such a gradient itself, of something that knows noised pictures (``Classifier.climb``).
        weaker: a weaker decoder's denoiser of the same conditions, and the scale of ``guidance.autoguided``.
        """
        guided = guidance_scale != 1
        if guided:
            for kind in self.kinds:
                kind.check_null(null)
        with torch.no_grad():  # once a call, not once a step
            conditions = self.encode(conditions)
            null = self.encode(null) if guided else conditions
        denoise = guidance.classifier_free(
            self.denoiser,
            conditions,
            null,
            guidance_scale,
            guidance_rescale,
            self.schedule,
            guidance_interval,
            None if apg is None else guidance.Projection(*apg),
        )
        if weaker is not None:
            denoise = guidance.autoguided(denoise, *weaker, self.schedule, guidance_interval)
        denoise = self._limited(denoise, conditions, threshold)
        if objective is not None:
            denoise = guidance.gradient(denoise, self.schedule, self._climb(denoise, objective, conditions))
            denoise = self._limited(denoise, conditions, threshold)
        if climb is not None:
            denoise = guidance.gradient(denoise, self.schedule, climb)
            denoise = self._limited(denoise, conditions, threshold)
        return denoise

    def _climb(
        self, denoise: guidance.Denoise, objective: Objective, conditions: Conditions
    ) -> guidance.GradFn:
        return guidance.gradient_on_x0(
            denoise, self.schedule, lambda x0: objective(self.to_picture(x0, conditions))
        )

    def _limited(self, denoise: guidance.Denoise, conditions: Conditions, threshold: str) -> guidance.Denoise:
        if threshold == "none" and "known" not in conditions:
            return denoise
        limit = guidance.THRESHOLDS.get(threshold, lambda picture: picture)

        def kept(x0: Tensor) -> Tensor:
            if self.autoencoder is not None:  # latents have no range
                return put_back(x0, conditions.get("known"))
            return self.to_data(self._in_range(x0, conditions, limit), conditions)

        return guidance.clamp_x0(denoise, self.schedule, kept)

    def sample(
        self,
        conditions: Conditions,
        noise: Noise,
        sampling: Sampling | None = None,
        null: Conditions | None = None,
        objective: Objective | None = None,
        climb: guidance.GradFn | None = None,
        origin: Origin | None = None,
        weaker: tuple[guidance.Denoise, float] | None = None,
    ) -> Iterator[Step]:
        """Steps towards pictures; ``to_picture(step.x0, conditions)`` shows each.

        origin: a picture that is drawn over, or of which a part is kept; None = none.
        objective, climb: guides, as in ``denoise``; ``sampling.gradient`` says what their gradient changes.
        weaker: as in ``denoise``.
        """
        sampling = sampling or self.config.sampling
        null, scale = null or self.null(conditions), sampling.guidance_scale
        denoiser = partial(self.denoise, conditions, null, scale, weaker=weaker, **sampling.of_guidance)
        shift = None
        # DDIM publicly changes the score even where ancestral sampling changes the mean.
        if sampling.gradient == "mean" and sampling.sampler == "ddpm":
            denoise = denoiser()
            of_x0 = None if objective is None else self._climb(denoise, objective, conditions)
            shift = guidance.together(of_x0, climb)
        else:
            denoise = denoiser(objective=objective, climb=climb)
        base = conditions.get("base")
        shape = self.shape if base is None else tuple(base.shape[1:])
        if origin is None:
            return self.run(denoise, shape, noise, sampling, shift)
        origin = replace(origin, picture=self.to_data(origin.picture, conditions))
        if self.autoencoder is not None and origin.known is not None:
            factor = self.autoencoder.config.factor
            origin = replace(origin, known=known_at(origin.known, factor) > 0.5)
        return self.run(denoise, shape, noise, sampling, shift, origin)
