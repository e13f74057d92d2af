"""The decoder: pictures from embeddings, text, classes or nothing; with ``low_res``, an upsampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..diffusion import guidance
from ..diffusion.noise import Noise, Random, randn
from ..diffusion.samplers import Step
from ..nets.text import TextTransformer
from ..nets.unet import UNet
from .config import DecoderStageConfig, Sampling
from .inpaint import erase, known_part, put_back
from .low_res import corrupt, enlarge
from .stage import Conditions, Objective, Stage, chance


class Decoder(Stage):
    """Conditions -> picture [N,3,S,S]; with ``config.low_res`` it enlarges a smaller picture.

    The input's channels are [noised picture, known picture and mask, enlarged smaller picture].
    """

    def __init__(self, config: DecoderStageConfig) -> None:
        _check(config)
        super().__init__(config, UNet(config.net), config.net.image_embed_dim or 0)
        self.text = None if config.text is None else TextTransformer(config.text)
        self.last = UNet(config.net) if config.last_network else None  # takes the step from level 1 to data

    @property
    def size(self) -> int:
        """Height and width of the pictures, in pixels."""
        return self.config.net.image_size

    @property
    def takes_image(self) -> bool:
        return self.config.net.image_embed_dim is not None

    @property
    def takes_text(self) -> bool:
        """Whether it takes CLIP's text tokens."""
        return self.config.net.text_dim is not None and self.config.text is None

    @property
    def takes_text_embed(self) -> bool:
        """Whether it takes CLIP's one vector for a text."""
        return self.config.net.text_embed_dim is not None and self.config.text is None

    @property
    def takes_tokens(self) -> bool:
        """Whether it takes the ids of a tokenizer, for a text transformer of its own."""
        return self.config.text is not None

    @property
    def takes_prompt(self) -> bool:
        return self.takes_text or self.takes_text_embed or self.takes_tokens

    @property
    def takes_class(self) -> bool:
        return self.config.net.classes is not None

    def call_network(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Encode tokens that are not yet (in training, with a gradient), and join pictures to the input."""
        told = self.encode(conditions)
        more = [told.pop(key) for key in ("known", "base") if key in told]
        x = torch.cat([x, *more], dim=1) if more else x
        if self.last is None:
            return self.network(x, t, **told)
        final = t == 0
        if final.all() or not final.any():
            return (self.last if final.all() else self.network)(x, t, **told)
        parts = [(self.last, final), (self.network, ~final)]  # both, in training
        made = [net(x[rows], t[rows], **{k: v[rows] for k, v in told.items()}) for net, rows in parts]
        return torch.cat(made)[torch.cat([rows.nonzero()[:, 0] for _, rows in parts]).argsort()]

    def encode(self, conditions: Conditions) -> Conditions:
        """The same with what the text transformer makes of "tokens", if there are any: "text", "text_embed".

        Padding is attended to (it is learned, and so the empty text), hence there is no mask of the text.
        """
        told = dict(conditions)
        if "tokens" in told:
            told["text_embed"], told["text"] = self.text(told.pop("tokens"), told.pop("token_mask"))
        return told

    def conditions(
        self,
        n: int,
        image_embed: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        classes: Tensor | None = None,
        low_res: Tensor | None = None,
        text_embed: Tensor | None = None,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
        image: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Conditions:
        """What the network is told about ``n`` pictures; what it does not take is left out.

        image_embed [N,D] of length 1; text [N,L,W] with text_mask bool [N,L], and text_embed [N,D], all
        CLIP's; tokens int64 [N,L] with token_mask bool [N,L], for a text transformer of the stage's own;
        classes int64 [N]; low_res [N,3,s,s] in [-1,1]; image [N,3,S,S] in [-1,1] with mask [N,1,S,S],
        1 = known, to be inpainted. None = not given (the network's "nothing").

        Raises ``ValueError`` without a low-resolution picture or a class that the stage cannot do without.
        """
        made: Conditions = {}
        net, device = self.config.net, self.embed_mean.device
        if self.takes_image:
            given = image_embed is not None
            made["image_embed"] = (
                self.whiten(image_embed) if given else torch.zeros(n, net.image_embed_dim, device=device)
            )
            made["has_image"] = torch.full((n,), given, dtype=torch.bool, device=device)
        made.update(self._texts(n, text, text_mask, text_embed, tokens, token_mask))
        if self.takes_class:
            if classes is None and not self.config.drop_class:
                raise ValueError(
                    "this model knows no picture without a class (its drop_class is 0): ask "
                    f"for one of 0 to {net.classes - 1}"
                )
            made["classes"] = classes if classes is not None else torch.full((n,), -1, device=device)
        if self.config.low_res:
            if low_res is None:
                raise ValueError("an upsampler needs a low-resolution picture")
            made["base"] = self.enlarge(low_res)
        if self.config.inpaint:
            like = made["base"] if "base" in made else torch.empty(n, 3, self.size, self.size, device=device)
            made["known"] = known_part(image, mask, like)
        return made

    def _texts(
        self,
        n: int,
        text: Tensor | None,
        text_mask: Tensor | None,
        text_embed: Tensor | None,
        tokens: Tensor | None,
        token_mask: Tensor | None,
    ) -> Conditions:
        made: Conditions = {}
        net, device = self.config.net, self.embed_mean.device
        if self.takes_text:
            given = text is not None
            made["text"] = text if given else torch.zeros(n, 1, net.text_dim, device=device)
            made["text_mask"] = text_mask if given else torch.zeros(n, 1, dtype=torch.bool, device=device)
        if self.takes_text_embed:
            given = text_embed is not None
            made["text_embed"] = text_embed if given else torch.zeros(n, net.text_embed_dim, device=device)
        if self.takes_tokens:
            given, shape = tokens is not None, (n, self.config.text.length)
            made["tokens"] = tokens if given else torch.zeros(shape, dtype=torch.int64, device=device)
            made["token_mask"] = token_mask if given else torch.zeros(shape, dtype=torch.bool, device=device)
        return made

    def null(self, conditions: Conditions) -> Conditions:
        """The same with nothing to go by but the low-resolution picture and what is known of this one."""
        empty = {
            "has_image": torch.zeros_like,
            "text_mask": torch.zeros_like,
            "text_embed": torch.zeros_like,
            "token_mask": torch.zeros_like,
            "classes": lambda value: torch.full_like(value, -1),
        }
        return {key: empty[key](value) if key in empty else value for key, value in conditions.items()}

    def drop(self, conditions: Conditions, generator: Random = None) -> Conditions:
        """Training only: leave each condition out on its own chance, add noise to the embedding, and
        forget a part of what is known of the picture."""
        kept, config = dict(conditions), self.config
        if "has_image" in kept:
            embed = kept["image_embed"]
            kept["has_image"] = kept["has_image"] & ~chance(len(embed), config.drop_image, embed, generator)
            if config.embed_noise:
                noise = randn(embed.shape, embed.device, generator)
                kept["image_embed"] = embed + config.embed_noise * noise
        texts = [key for key in ("text_mask", "text_embed", "token_mask") if key in kept]
        if texts:
            if config.null_text == "empty" and config.drop_text and not self.takes_tokens:
                raise ValueError(
                    'guidance of this model starts from CLIP\'s encoding of "", which no text '
                    "that is left out becomes; train it with drop_text 0 on captions some of "
                    "which are empty"
                )
            left_out = chance(len(kept[texts[0]]), config.drop_text, kept[texts[0]], generator)
            for key in texts:
                kept[key] = kept[key].masked_fill(left_out[:, None], 0)
        if "classes" in kept:
            classes = kept["classes"]
            dropped = chance(len(classes), config.drop_class, classes, generator)
            kept["classes"] = torch.where(dropped, torch.full_like(classes, -1), classes)
        if "known" in kept:
            kept["known"] = erase(kept["known"], generator)
        return kept

    def corrupt(self, low_res: Tensor, generator: Random = None) -> Tensor:
        """Training only: blur the small picture and add noise, so that the upsampler mends both."""
        return corrupt(low_res, self.config.low_res, generator)

    def enlarge(self, low_res: Tensor) -> Tensor:
        """[N,3,s,s] -> [N,3,f*s,f*s]; f is the stage's factor (crops pass too)."""
        return enlarge(low_res, self.config.low_res, self.size // self.config.low_res.size)

    def to_data(self, picture: Tensor, conditions: Conditions) -> Tensor:
        """Picture in [-1,1] -> what the process diffuses (itself, or the scaled residual)."""
        scale = self.config.low_res.residual_scale if self.config.low_res else None
        return picture if scale is None else (picture - conditions["base"]) / scale

    def to_picture(self, x0: Tensor, conditions: Conditions) -> Tensor:
        """The inverse of ``to_data``, clamped to [-1,1]; what is known of the picture is as it was given."""
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
    ) -> guidance.Denoise:
        """The guided denoiser, its x0 kept to pictures in [-1,1] as ``Sampling.threshold`` says.

        objective: pictures [N,3,S,S] in [-1,1] -> log-probability [N], climbed by its gradient.
        climb: such a gradient itself, of something that knows noised pictures (``Classifier.climb``).
        """
        guided = guidance_scale != 1
        if guided and self.takes_class and not self.config.drop_class and (null["classes"] < 0).any():
            raise ValueError(
                "this model knows no picture without a class (its drop_class is 0), from which "
                "guidance would start: its guidance_scale must be 1"
            )
        with torch.no_grad():  # once a call, not once a step
            conditions = self.encode(conditions)
            null = self.encode(null) if guided else conditions
        denoise = guidance.classifier_free(
            self.denoiser, conditions, null, guidance_scale, guidance_rescale, self.schedule
        )
        denoise = self._kept(denoise, conditions, threshold)
        if objective is not None:
            denoise = guidance.gradient(denoise, self.schedule, self._climb(denoise, objective, conditions))
            denoise = self._kept(denoise, conditions, threshold)
        if climb is not None:
            denoise = guidance.gradient(denoise, self.schedule, climb)
            denoise = self._kept(denoise, conditions, threshold)
        return denoise

    def _climb(
        self, denoise: guidance.Denoise, objective: Objective, conditions: Conditions
    ) -> guidance.GradFn:
        return guidance.gradient_on_x0(
            denoise, self.schedule, lambda x0: objective(self.to_picture(x0, conditions))
        )

    def _kept(self, denoise: guidance.Denoise, conditions: Conditions, threshold: str) -> guidance.Denoise:
        if threshold == "none" and "known" not in conditions:
            return denoise
        limit = guidance.THRESHOLDS.get(threshold, lambda picture: picture)
        return guidance.clamp_x0(
            denoise, self.schedule, lambda x0: self.to_data(self._in_range(x0, conditions, limit), conditions)
        )

    def sample(
        self,
        conditions: Conditions,
        noise: Noise,
        sampling: Sampling | None = None,
        null: Conditions | None = None,
        objective: Objective | None = None,
        climb: guidance.GradFn | None = None,
    ) -> Iterator[Step]:
        """Steps towards pictures; ``to_picture(step.x0, conditions)`` shows each.

        objective, climb: guides, as in ``denoise``; ``sampling.gradient`` says what their gradient changes.
        """
        sampling = sampling or self.config.sampling
        null, scale = null or self.null(conditions), sampling.guidance_scale
        options = {"guidance_rescale": sampling.guidance_rescale, "threshold": sampling.threshold}
        shift = None
        # DDIM publicly changes the score even where ancestral sampling changes the mean.
        if sampling.gradient == "mean" and sampling.sampler == "ddpm":
            denoise = self.denoise(conditions, null, scale, **options)
            of_x0 = None if objective is None else self._climb(denoise, objective, conditions)
            shift = guidance.together(of_x0, climb)
        else:
            denoise = self.denoise(conditions, null, scale, objective, climb=climb, **options)
        base = conditions.get("base")
        shape = (3, self.size, self.size) if base is None else tuple(base.shape[1:])
        return self.run(denoise, shape, noise, sampling, shift)


def _check(config: DecoderStageConfig) -> None:
    """Refuse a network that does not fit the stage; raises ``ValueError``."""
    net, low_res, text = config.net, config.low_res, config.text
    channels = 3 + (4 if config.inpaint else 0) + (3 if low_res else 0)
    outputs = 6 if config.process.variance == "learned" else 3
    if (net.in_channels, net.out_channels) != (channels, outputs):
        raise ValueError(
            f"this stage needs a U-Net with in_channels {channels} and out_channels "
            f"{outputs}, not {net.in_channels} and {net.out_channels}"
        )
    if low_res and net.image_size % low_res.size:
        raise ValueError(f"{net.image_size} pixels are no whole multiple of low_res.size {low_res.size}")
    if text and (net.text_dim, net.text_embed_dim) != (text.width, text.width):
        raise ValueError(
            f"a text transformer of width {text.width} needs a U-Net with text_dim and "
            f"text_embed_dim {text.width}, not {net.text_dim} and {net.text_embed_dim}"
        )
