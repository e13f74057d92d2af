"""Train an upsampler: a picture several times larger from a small, slightly corrupted one.

    python -m training.upsampler configs/icons/upsampler-256.yaml
    python -m training.upsampler configs/icons/upsampler-256.yaml train.batch_size=32 --dry-run
    accelerate launch -m training.upsampler configs/icons/upsampler-256.yaml

The same command again continues the run. ``out/decoder.safetensors`` is ready for use at any time.
"""

from .programs import run
from .tasks.pictures import main

if __name__ == "__main__":
    run(lambda: main(__doc__, wants_low_res=True))
