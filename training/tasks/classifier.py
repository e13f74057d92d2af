"""Pictures and classes -> what a classifier is trained on."""

from __future__ import annotations

from collections.abc import Iterator

from accelerate import Accelerator
from PIL import Image

from unclip.config import ConfigError
from unclip.data.batches import Batch, classes_of, shrink
from unclip.guides.classifier import Classifier

from ..data.source import Source
from ..run.examples import Examples
from ..run.settings import micro_batch
from .recipes import ClassifierRecipe


class ClassifierTask:
    """Pictures and their classes -> what a classifier is trained on."""

    def __init__(self, recipe: ClassifierRecipe, stage: Classifier, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.net, data = stage.config.net, recipe.data
        if (data.crop or data.size) < self.net.image_size:
            raise ConfigError(
                f"pictures of {data.crop or data.size} pixels are smaller than the "
                f"classifier's {self.net.image_size}"
            )
        self.source = Source(data, recipe.train.seed, accelerator.process_index, accelerator.num_processes)
        self.order, self.listing = self.source.order, getattr(self.source, "listing", {})

    def examples(self, batch: Batch) -> Examples:
        device = self.accelerator.device
        classes = classes_of(batch, self.net.classes).to(device)
        picture = shrink(batch.image.to(device), self.net.image_size)
        return Examples(picture, {"classes": classes}, batch.key)

    def batches(self, start: int) -> Iterator[Examples]:
        n = micro_batch(self.recipe.train, self.accelerator)
        return map(self.examples, self.source.batches(n, start))

    def validation(self) -> list[Examples]:
        batch = self.source.heldout(512)
        return [] if batch is None else [self.examples(batch)]

    def draw(self, classifier: Classifier) -> Image.Image | None:
        """It makes no pictures."""
        return None
