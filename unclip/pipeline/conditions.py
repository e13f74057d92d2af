"""What a picture stage is told of samples: the same in training, validation and measuring."""

from __future__ import annotations

import torch
from torch import Tensor

from ..clip import Clip
from ..data.batches import Batch, classes_of
from ..stages import Conditions, Decoder
from ..stages.tokenizer import GlideTokenizer


@torch.no_grad()
def conditions_of(
    stage: Decoder,
    clip: Clip | None,
    batch: Batch,
    low_res: Tensor | None,
    tokenizer: GlideTokenizer | None = None,
    picture: Tensor | None = None,
) -> Conditions:
    """What a stage is told about a batch: its embeddings, captions, classes and the pictures themselves
    [N,3,S,S] (to inpaint), as far as it takes them.

    Raises ``ConfigError`` if the pictures have no class, or one that the stage does not know.
    """
    told: dict[str, Tensor] = {}
    device, embedded = stage.embed_mean.device, batch.embedded
    if stage.takes_image:
        told["image_embed"] = (
            clip.encode_image(batch.image.to(device)) if embedded is None else embedded.image.to(device)
        )
    if stage.takes_text or stage.takes_text_embed:
        if embedded is None or clip is not None:
            text = clip.encode_text(batch.caption).trimmed()
            told |= {"text": text.tokens, "text_mask": text.mask, "text_embed": text.embed}
        else:
            told |= {"text": embedded.tokens, "text_mask": embedded.mask, "text_embed": embedded.text}
            told = {name: None if value is None else value.to(device) for name, value in told.items()}
    if stage.takes_tokens:
        told["tokens"], told["token_mask"] = (x.to(device) for x in tokenizer.tokenize(batch.caption))
    if stage.takes_class:
        told["classes"] = classes_of(batch, stage.config.net.classes).to(device)
    if stage.config.inpaint:
        told["image"] = picture
    return stage.conditions(len(batch.image), low_res=low_res, **told)
