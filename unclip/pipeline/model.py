"""The parts of a model: its stages and what goes with them, where they are, and what they are told."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import CheckpointError
from ..clip import Clip, same_weights
from ..guides.classifier import Classifier
from ..nets.autoencoder import AutoencoderConfig
from ..resources.devices import as_device, lent, parse_dtype, place
from ..stages import AnyPrior, Conditions, Decoder
from .canvas import Canvas
from .prompts import Prompts, encode, needed

if TYPE_CHECKING:
    from ..guides.noised_clip import NoisedClip
    from ..stages.tokenizer import GlideTokenizer


def stages_fit(model: Model) -> None:
    """Raises ``CheckpointError`` for stages that do not fit together."""
    size = model.decoder.size
    for stage in model.upsamplers:
        if stage.config.low_res is None or stage.config.low_res.size != size:
            raise CheckpointError(
                f"an upsampler does not start from {size} pixels, the size that the stage before it makes"
            )
        size = stage.size
    _clip_fits(model)
    for stage in model.picture_stages:
        text, tokenizer = stage.config.text, model.tokenizer
        if text is not None and tokenizer is None:
            raise CheckpointError(
                "this model has a text transformer of its own but comes without its tokenizer"
            )
        if text is not None and tokenizer is not None and tokenizer.length != text.length:
            raise CheckpointError(
                f"the tokenizer makes {tokenizer.length} tokens of a text, but a stage takes {text.length}"
            )
    if model.decoder.takes_image and model.prior is None:
        raise CheckpointError("a decoder of image embeddings needs a prior")
    if model.guide is not None:
        net, schedule = model.guide.config.net, model.guide.config.schedule
        _same_levels(model, "CLIP of noised pictures", net.image_size, schedule, net.timesteps)


def _clip_fits(model: Model, *more: Decoder) -> None:
    stages = [stage for stage in (model.prior, *model.picture_stages, *more) if stage is not None]
    for stage in (stage for stage in stages if stage.takes_clip):
        if model.clip is None:
            raise CheckpointError("this model takes text but comes without its CLIP")
        trained_with = stage.facts.get("clip", model.clip.identity)
        if not same_weights(trained_with, model.clip.identity):
            raise CheckpointError(
                f"the {stage.config.kind} was trained with CLIP {trained_with}, "
                f"but the model holds {model.clip.identity}"
            )


def classifier_fits(model: Model, classifier: Classifier) -> None:
    """Raises ``CheckpointError`` for a classifier of other pictures, noise levels or classes."""
    theirs, classes = classifier.config, model.decoder.config.net.classes
    _same_levels(model, "classifier", theirs.net.image_size, theirs.schedule, theirs.timesteps)
    if classes not in (None, theirs.net.classes):
        raise CheckpointError(
            "the classifier does not fit the decoder: its classes is "
            f"{theirs.net.classes}, the decoder's {classes}"
        )


def weaker_fits(model: Model, weaker: Decoder) -> None:
    """Raises ``CheckpointError`` for a decoder that cannot lead the model's own away from itself."""
    process = weaker.config.process
    levels = process.schedule, process.timesteps, process.shift, weaker.config.autoencoder
    _same_levels(model, "weaker decoder", weaker.size, *levels)
    if weaker.config.low_res != model.decoder.config.low_res:
        raise CheckpointError("the weaker decoder does not fit: one of the two is an upsampler")
    known = [type(kind) for kind in model.decoder.kinds]
    if unknown := [type(kind).__name__ for kind in weaker.kinds if type(kind) not in known]:
        raise CheckpointError(
            f"the weaker decoder does not fit: it is told of {' and '.join(unknown)}, the decoder is not"
        )
    _clip_fits(model, weaker)


def _same_levels(
    model: Model,
    what: str,
    image_size: int,
    schedule: str,
    timesteps: int,
    shift: float = 1.0,
    space: AutoencoderConfig | None = None,
) -> None:
    """Refuse what guides by noised pictures, if it knows others than the decoder makes."""
    process = model.decoder.config.process
    if model.decoder.config.autoencoder != space:
        raise CheckpointError(f"the {what} does not fit the decoder: it knows no latents of its autoencoder")
    facts = {
        "image_size": (model.decoder.size, image_size),
        "schedule": (process.schedule, schedule),
        "timesteps": (process.timesteps, timesteps),
        "shift": (process.shift, shift),
    }
    for name, (wanted, theirs) in facts.items():
        if wanted != theirs:
            raise CheckpointError(
                f"the {what} does not fit the decoder: its {name} is {theirs}, the decoder's {wanted}"
            )


class Model(nn.Module):
    """What a ``Pipeline`` is made of.

    clip:       None only for stages that take neither CLIP's text nor its image embeddings.
    prior:      None for a decoder that takes text alone (GLIDE) or nothing.
    decoder:    the first stage that makes pictures.
    upsamplers: in order, each starting from the size that the one before it made.
    tokenizer:  for stages with a text transformer of their own (GLIDE).
    guide:      a CLIP of noised pictures, which clip_guidance_scale then climbs instead of ``clip``.
    classifier: see ``guide_with``.
    weaker:     see ``autoguide_with``.
    """

    def __init__(
        self,
        decoder: Decoder,
        prior: AnyPrior | None = None,
        upsamplers: Sequence[Decoder] = (),
        clip: Clip | None = None,
        name: str = "unnamed",
        description: str = "",
        tokenizer: GlideTokenizer | None = None,
        guide: NoisedClip | None = None,
        classifier: Classifier | None = None,
        weaker: Decoder | None = None,
    ) -> None:
        super().__init__()
        self._lends_to: torch.device | None = None  # see ``place``
        self._digest: tuple[tuple[int, ...], str] | None = None
        self.name, self.description, self.tokenizer = name, description, tokenizer
        self.clip, self.prior, self.decoder, self.guide = clip, prior, decoder, guide
        self.classifier: Classifier | None = None
        self.weaker: Decoder | None = None
        # torch's list knows no type of its elements.
        self.upsamplers = cast(Sequence[Decoder], nn.ModuleList(upsamplers))
        stages_fit(self)
        if classifier is not None:
            self.guide_with(classifier)
        if weaker is not None:
            self.autoguide_with(weaker)

    @property
    def picture_stages(self) -> list[Decoder]:
        """The decoder and the upsamplers."""
        return [self.decoder, *self.upsamplers]

    @property
    def size(self) -> int:
        """Height and width of the finished pictures."""
        return self.picture_stages[-1].size

    @property
    def device(self) -> torch.device:
        """Where it works; with ``offload``, stages are there only while they do."""
        return self._lends_to or self.decoder.embed_mean.device

    @property
    def takes_prompt(self) -> bool:
        return self.prior is not None or self.decoder.takes_prompt

    @property
    def sees(self) -> bool:
        """Whether its CLIP knows pictures."""
        return self.clip is not None and self.clip.image_size is not None

    @property
    def classes(self) -> int:
        """How many classes can be asked for; 0 = the model knows none."""
        known = self.decoder.config.net.classes
        return known or (0 if self.classifier is None else self.classifier.classes)

    def guide_with(self, classifier: Classifier) -> Self:
        """Let ``class_`` be reached by this classifier's gradient (too); returns the pipeline.

        Raises ``CheckpointError`` if it knows other pictures, other noise levels or other classes than
        the decoder.
        """
        classifier_fits(self, classifier)
        self.classifier = classifier if self._lends_to else classifier.to(self.device)
        return self

    def autoguide_with(self, weaker: Decoder) -> Self:
        """Lead the decoder away from what a weaker one makes of the same (``guidance.autoguided``); returns
        the pipeline.

        weaker: a smaller decoder, or an earlier checkpoint of this one. Raises ``CheckpointError`` if it
        makes other pictures, has other noise levels or another CLIP, or takes what this one does not.
        """
        weaker_fits(self, weaker)
        self.weaker = weaker if self._lends_to else weaker.to(self.device)
        return self

    def place(
        self,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        offload: bool = False,
    ) -> Self:
        """Bring all stages to a device (None = a GPU if there is one) and their weights to a precision.

        offload: they stay in the computer's memory, and are on the device only while they work.
        CLIP stays float32, since models know it by its weights.
        """
        device, dtype = as_device(device), parse_dtype(dtype)
        self._lends_to = device if offload else None
        guides = self.guide, self.classifier, self.weaker
        for part in filter(None, (self.prior, *self.picture_stages, *guides, self.clip)):
            place(
                part,
                torch.device("cpu") if offload else device,
                torch.float32 if part is self.clip else dtype,
            )
        return self

    def digest(self) -> str:
        """Of all that its pictures depend on: weights and configurations; summed anew when these change."""
        values = self.state_dict()
        state = tuple(value._version for value in values.values())
        if self._digest is None or self._digest[0] != state:
            total = hashlib.sha256()
            for stage in (self.prior, *self.picture_stages):
                if stage is not None:  # without defaults: settings that a later version adds change nothing
                    total.update(stage.config.model_dump_json(exclude_defaults=True).encode())
            for name, value in values.items():
                total.update(name.encode())
                total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._digest = state, total.hexdigest()[:12]
        return self._digest[1]

    def encode_text(self, prompts: list[str]) -> Prompts:
        """What the stages take of prompts; warns of what does not fit into a context."""
        with self._at_work(self.clip):
            return encode(prompts, self.clip, self.tokenizer, self.device)

    @torch.no_grad()
    def encode_image(self, pictures: Tensor) -> Tensor:
        """CLIP's embeddings [N,D] of pictures [N,3,H,W] in [-1,1], as the decoder takes them."""
        clip = needed(self.clip, "its CLIP")
        with self._at_work(clip):
            embed = clip.towers.image(clip.preprocess(pictures.to(self.device))).float()
        return embed if self._as_it_comes else F.normalize(embed, dim=-1)

    @property
    def _as_it_comes(self) -> bool:
        """Whether it takes CLIP's vectors as CLIP has them, and not of length 1."""
        return self.prior is not None and not self.prior.config.unit_norm

    def _no_text(self, like: Prompts) -> Prompts:
        """The text "", as often as there are prompts: where guidance starts that has not learned none."""
        return self.encode_text([""]).repeat(len(like)).padded_like(like)

    def _at_work(self, *parts: nn.Module | None) -> AbstractContextManager:
        """With ``offload``: the parts are on the device inside."""
        return nullcontext() if self._lends_to is None else lent(parts, self._lends_to)

    def _text_embed(self, text: Prompts) -> Tensor:
        """CLIP's vectors of texts [N,D], as the model takes them."""
        clip = needed(text.clip, "its CLIP")
        return clip.raw if self._as_it_comes else clip.embed

    def prior_conditions(self, text: Prompts) -> Conditions:
        """What the prior is told of texts."""
        clip = needed(text.clip, "its CLIP")
        return needed(self.prior, "a prior").conditions(self._text_embed(text), clip.tokens, clip.mask)

    def conditions(
        self,
        stage: Decoder,
        n: int,
        image_embed: Tensor | None = None,
        text: Prompts | None = None,
        low_res: Tensor | None = None,
        classes: Tensor | None = None,
        canvas: Canvas | None = None,
        **more: Tensor | None,
    ) -> Conditions:
        """What one of ``picture_stages`` is told about ``n`` pictures; what it does not take is left out.

        more: values of other kinds of condition, as ``Decoder.conditions`` takes them.
        No text is "" to a stage that has learned no other.
        """
        if text is None and stage.takes_prompt and stage.config.null_text == "empty":
            text = self.encode_text([""]).repeat(n)
        values = dict(more, image_embed=image_embed, low_res=low_res, classes=classes)
        if text is not None and text.clip is not None:
            values.update(text=text.clip.tokens, text_mask=text.clip.mask, text_embed=self._text_embed(text))
        if text is not None:
            values.update(tokens=text.ids, token_mask=text.mask)
        if canvas is not None:
            values["image"], values["mask"] = canvas.at(stage.size)
        return stage.conditions(n, **values)
