"""How close a summary's meaning is to the source's or the reference's, by a sentence embedding model.

Source: Reimers and Gurevych 2019, "Sentence-BERT"; by default all-MiniLM-L6-v2, out of a pinned wheel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

from tersely.errors import PackageMissing, RewardFailed
from tersely.models.minilm import MOST_TOKENS, minilm_folder
from tersely.models.quiet import quiet_transformers
from tersely.scorer.rewards.base import RewardInput, checked_choice

TEXTS_REMEMBERED = 4096


class EmbeddingReward:
    """Cosine of the embeddings of the summary and of the source text (or the reference).

    Texts are embedded one at a time on the CPU, so that a value does not depend on what else is in the batch; what was
    embedded is remembered. The model cuts long texts (all-MiniLM-L6-v2 after 256 word pieces).

    Args:
        against: `document` or `reference`.
        model: Folder, or hub id, of a sentence-transformers model with safetensors weights; all-MiniLM-L6-v2 by
            default, fetched (84 MB) the first time.

    Raises:
        PackageMissing: sentence-transformers is not installed.
        DownloadFailed: The default model is not cached and can't be fetched.
        RewardFailed: The model named can't be loaded.
    """

    name: ClassVar[str] = "embedding"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str] = "topic words and copied sentences; it hardly sees a negation or a wrong number"

    def __init__(self, *, against: str = "document", model: str = "") -> None:
        self._against_document = checked_choice(self.name, "against", against, ("document", "reference")) == "document"
        self.absent_reason = "no source text" if self._against_document else "no reference summary"
        self._model = load_model(model)
        self._lock = Lock()
        self._remembered = lru_cache(maxsize=TEXTS_REMEMBERED)(self._embed)

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values in [-1, 1]; None when the text to compare with is blank, 0 for a blank summary."""
        return [self._value(item.text, item.document if self._against_document else item.reference) for item in batch]

    def _value(self, text: str, other: str) -> float | None:
        if not other.strip():
            return None
        if not text.strip():
            return 0.0
        cosine = float(self._remembered(text) @ self._remembered(other))
        return min(1.0, max(-1.0, cosine))

    def _embed(self, text: str) -> Any:
        """[width] float32, of length 1."""
        with self._lock:
            return self._model.encode([text], normalize_embeddings=True, show_progress_bar=False)[0]


def load_model(model: str = "") -> Any:
    """A SentenceTransformer on the CPU; the arguments and errors are those of `EmbeddingReward`."""
    quiet_transformers()
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    except ModuleNotFoundError as error:
        raise PackageMissing(
            f"The reward embedding needs the Python package {error.name}, which is not installed.",
            "Install it with: pip install 'tersely[embedding]'",
        ) from None
    if not model:
        transformer = Transformer(str(minilm_folder()), max_seq_length=MOST_TOKENS)
        pooling = Pooling(transformer.get_embedding_dimension(), "mean")
        return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    try:
        return SentenceTransformer(
            str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model,
            device="cpu",
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise RewardFailed(
            f"rewards.embedding.model = {model!r} can't be loaded: {type(error).__name__}: {error}",
            "Name a folder or hub id of a sentence-transformers model with safetensors weights, or leave it out.",
        ) from None
