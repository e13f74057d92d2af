"""Train a decoder: pictures from CLIP image embeddings, text, both, or nothing.

    python -m training.decoder configs/icons/decoder.yaml
    python -m training.decoder configs/icons/decoder.yaml train.batch_size=32 --dry-run
    accelerate launch -m training.decoder configs/icons/decoder.yaml

The same command again continues the run. ``out/decoder.safetensors`` is ready for use at any time.
"""

from .programs import run
from .tasks.pictures import main

if __name__ == "__main__":
    run(lambda: main(__doc__, wants_low_res=False))
