"""What all routes of a server share: its models, queue, store and counters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...options import Options
from ...pipeline.pipeline import Pipeline
from ...pipeline.request import RESAMPLINGS, override, sampling_of
from ...stages import Prior
from .errors import Refused
from .queue.batches import Batcher
from .queue.metrics import Metrics
from .settings import Settings
from .store import Store

# Names of models that clients have built in; the first model answers for them.
STANDS_IN = ("dall-e-", "gpt-image-", "chatgpt-image-")
VERBS = ("generate", "inpaint", "redraw", "vary", "interpolate")  # the last two need CLIP
STEPS = 4000  # of one picture, all stages together: 250 are many, a hole of RePaint takes 10 times as many


@dataclass
class House:
    """One server's."""

    models: Mapping[str, Pipeline]  # by the names that clients use, the default first
    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    store: Store = field(default_factory=Store)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        most, together = self.settings.max_queue, self.settings.max_batch
        self.batcher = Batcher(self.models, most, together, self.metrics)

    def model(self, name: str) -> tuple[str, Pipeline]:
        """The model that a client means, and what it is called here; ``Refused`` if there is none."""
        known = name if name and not name.startswith(STANDS_IN) else next(iter(self.models))
        if known not in self.models:
            raise Refused(
                f"The model {name[:80]!r} does not exist here; there are: {', '.join(self.models)}",
                404,
                param="model",
                code="model_not_found",
            )
        return known, self.models[known]

    def described(self, name: str) -> dict[str, Any]:
        """A model as OpenAI lists it."""
        return {"id": name, "object": "model", "created": self.created, "owned_by": "unclip"}

    def detailed(self, name: str) -> dict[str, Any]:
        """... and as our page needs it."""
        _, pipeline = self.model(name)
        sampling = pipeline.decoder.config.sampling
        verbs = VERBS if pipeline.decoder.takes_image and pipeline.sees else VERBS[:3]
        facts = {
            "size": pipeline.size,
            "verbs": list(verbs),
            "steps": sampling.steps,
            "guidance_scale": sampling.guidance_scale,
            "sampler": sampling.sampler,
            "takes_prompt": pipeline.takes_prompt,
            "classes": pipeline.classes,
        }
        return {**self.described(name), "unclip": facts}

    def check_cost(self, pipeline: Pipeline, asked: Options, hole: bool) -> None:
        """``Refused`` for more steps than a picture may take, ``ValueError`` for none that the model knows.

        hole: whether only a part is drawn anew.
        """
        decoder, prior = pipeline.decoder, pipeline.prior
        steps = decoder.count(sampling_of(pipeline, decoder, asked))
        if hole and not decoder.config.inpaint:
            steps *= asked.resamplings or RESAMPLINGS
        for stage in pipeline.upsamplers:
            steps += stage.count(sampling_of(pipeline, stage, asked))
        if isinstance(prior, Prior):
            steps += prior.count(override(prior.config.sampling, steps=asked.prior_steps))
        if steps > STEPS:
            raise Refused(f"{steps:,} steps a picture are more than {STEPS:,}; ask for fewer", param="steps")
