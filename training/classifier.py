"""Train a classifier of noised pictures, whose gradient guides a decoder to a class.

    python -m training.classifier configs/ladder/5-classifier.yaml
    python -m training.classifier configs/ladder/5-classifier.yaml train.batch_size=32 --dry-run
    accelerate launch -m training.classifier configs/ladder/5-classifier.yaml

The class of a picture is the integer "class" of its record. The same command again continues the run.
``out/classifier.safetensors`` is ready for use at any time; ``metrics.jsonl`` has cross entropy and
accuracy by quartile of t, since nobody can name what is all but noise.
"""

from __future__ import annotations

from unclip.guides.classifier import Classifier

from .programs import run
from .tasks.classifier import ClassifierTask
from .tasks.recipes import ClassifierRecipe
from .tasks.start import train_stage


def main(argv: list[str] | None = None) -> int:
    return train_stage(ClassifierRecipe, Classifier, ClassifierTask, __doc__, argv)


if __name__ == "__main__":
    run(main)
