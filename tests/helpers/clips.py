"""Small CLIPs, ours and of transformers, with random weights."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from unclip.clip import Clip, build_clip, load_clip

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "layers": 2, "heads": 2}
VIT = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 24}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 32}


def tiny(vision: dict = VIT, **more) -> Clip:
    torch.manual_seed(0)
    clip = build_clip({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **more})
    for module in clip.modules():  # as if it had been trained
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return clip


def byte_pair_tokenizer(folder: Path):
    """The tokenizer of transformers, from the byte pairs that come with OpenCLIP."""
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {special.get(t, t): i for t, i in SimpleTokenizer().encoder.items()}
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.open(path).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def of_transformers(folder: Path) -> Clip:
    """A CLIP in the code of transformers, with statistics of its own, from its folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(2)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 16, "vocab_size": 49408, "eos_token_id": 49407,
            "bos_token_id": 49406, "pad_token_id": 49407}  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    folder.mkdir()
    byte_pair_tokenizer(folder).save_pretrained(folder)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return load_clip(f"transformers:{folder}")
