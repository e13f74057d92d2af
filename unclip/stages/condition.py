"""What a kind of condition is: something that a decoder can be told of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from ..diffusion.noise import Random
from .config import DecoderStageConfig
from .stage import Conditions, Stage, chance

Values = Mapping[str, Tensor | None]  # arguments of ``Decoder.conditions``, by name; None = nothing


class Samples(Protocol):
    """What there is to be told of N samples, on the stage's device, computed when it is asked for.

    Besides the pictures as they were read, [N,3,H,W] in [-1,1], it has what ``Decoder.conditions`` takes, by
    the names of the arguments there.
    """

    @property
    def pictures(self) -> Tensor: ...


class Draws:
    """What is left out in training: by one draw for all that bears a name."""

    def __init__(self, generator: Random) -> None:
        self.generator = generator
        self._rows: dict[str, Tensor] = {}

    def left_out(self, name: str, p: float, like: Tensor) -> Tensor:
        """Bool [N], True with probability ``p``; N and the device are those of ``like``."""
        if name not in self._rows:
            self._rows[name] = chance(len(like), p, like, self.generator)
        return self._rows[name]


class Condition:
    """A kind of condition, with what the stage's configuration says of it.

    names:      of its values, among the arguments of ``Decoder.conditions``.
    empty:      inputs of the network that can say "nothing", and the value that says it.
    joined:     the input that joins the noised picture's channels, if any, and how many ``channels`` it has.
    tower:      of CLIP, by which it is made.
    clip_width: the width of that CLIP which must be ``width``, as the network's ``setting`` has it.
    need:       in words, what only another part of a model brings.
    """

    names: ClassVar[tuple[str, ...]]
    empty: ClassVar[Mapping[str, int]] = {}
    joined: ClassVar[str | None] = None
    channels: ClassVar[int] = 0
    tower: ClassVar[Literal["image", "text"] | None] = None
    clip_width: ClassVar[Literal["embed_dim", "text_dim"] | None] = None
    setting: ClassVar[str] = ""
    need: ClassVar[str] = ""
    width: int

    @classmethod
    def of(cls, config: DecoderStageConfig) -> Self | None:
        """The kind as a stage has it; None for one that takes nothing of the kind."""
        raise NotImplementedError

    def inputs(self, values: Values, n: int, stage: Stage) -> Conditions:
        """What the network takes of ``n`` pictures, from the values that are of this kind."""
        raise NotImplementedError

    def is_in(self, conditions: Conditions) -> bool:
        """Whether it is among what the network is told."""
        return not conditions.keys().isdisjoint({*self.empty, self.joined})

    def null(self, conditions: Conditions) -> Conditions:
        """What of its inputs changes where nothing is told."""
        return {key: torch.full_like(conditions[key], value) for key, value in self.empty.items()}

    def check_null(self, null: Conditions) -> None:
        """Refuse what guidance cannot start from; raises ``ValueError``."""

    def drop(self, conditions: Conditions, draws: Draws) -> Conditions:
        """Training only: what of its inputs changes by chance."""
        return {}

    def seen(self, samples: Samples) -> Values:
        """Its values for samples; a kind that is none of theirs makes its own of the pictures."""
        return {name: getattr(samples, name) for name in self.names}

    def blank(self, n: int, side: int, device: torch.device) -> Values:
        """Its values for ``n`` pictures of ``side`` pixels, of the right shapes; all zero."""
        return {}
