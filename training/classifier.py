"""Train a classifier of noised pictures, whose gradient guides a decoder to a class.

    python -m training.classifier configs/ladder/5-classifier.yaml
    python -m training.classifier configs/ladder/5-classifier.yaml train.batch_size=32 --dry-run
    accelerate launch -m training.classifier configs/ladder/5-classifier.yaml

The class of a picture is the integer "class" of its record. The same command again continues the run.
``out/classifier.safetensors`` is ready for use at any time; ``metrics.jsonl`` has cross entropy and
accuracy by quartile of t, since nobody can name what is all but noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from PIL import Image

from unclip.classifier import Classifier, ClassifierStageConfig
from unclip.config import Config, ConfigError

from .data import Batch, DataConfig, Source
from .loop import Examples, Training, make_accelerator, micro_batch, train
from .pictures import classes_of, shrink
from .programs import program, run


class ClassifierRecipe(Config):
    """A classifier: its data, itself, its training."""

    data: DataConfig
    stage: ClassifierStageConfig
    train: Training


class ClassifierTask:
    """Pictures and their classes -> what a classifier is trained on."""

    def __init__(self, recipe: ClassifierRecipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.net, data = recipe.stage.net, recipe.data
        if (data.crop or data.size) < self.net.image_size:
            raise ConfigError(f"pictures of {data.crop or data.size} pixels are smaller than the "
                              f"classifier's {self.net.image_size}")
        self.source = Source(data, recipe.train.seed, accelerator.process_index, accelerator.num_processes)
        self.order = self.source.order

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


def main(argv: list[str] | None = None) -> None:
    recipe = program(ClassifierRecipe, __doc__, argv)
    if recipe is None:
        return
    accelerator = make_accelerator(recipe.train)
    torch.manual_seed(recipe.train.seed)
    classifier = Classifier(recipe.stage).to(accelerator.device)
    train(classifier, ClassifierTask(recipe, accelerator), recipe.train, recipe, accelerator)


if __name__ == "__main__":
    run(main)
