"""Evaluations made by hand, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tersely.evaluation.build import build_evaluation, model_arms
from tersely.evaluation.completed import Completed, CompletedPrompt
from tersely.evaluation.metrics import Row


def completed(text: str, tokens: int, *, stopped: bool = True, target: int = 8) -> Completed:
    """A completion; its cut is counted in words."""
    return Completed(text, tokens, stopped, " ".join(text.split()[:target]), min(tokens, target))


def prompt(identity: str, greedy: Completed, *sampled: Completed, target: int = 8, **own: Any) -> CompletedPrompt:
    """A prompt; `own` replaces its other fields."""
    fields: dict[str, Any] = {
        "document": f"Document {identity}. It has two sentences.",
        "document_tokens_cut": 0,
        "reference": f"the reference of {identity}",
        "lead": f"Document {identity}.",
        "lead_tokens": 3,
        **own,
    }
    return CompletedPrompt(id=identity, target_tokens=target, greedy=greedy, sampled=sampled, **fields)


def score_words(rows: Sequence[Row], rewards: Sequence[str], *, options: Any = None) -> list[dict[str, Any]]:
    """Stands in for `score_rows`: each reward is the share of the reference's words that the summary has."""
    out = []
    for row in rows:
        words, wanted = set(row["completion"].split()), set(row["reference"].split())
        out.append({"id": row["id"], "rewards": dict.fromkeys(rewards, len(words & wanted) / max(len(wanted), 1))})
    return out


def evaluation(prompts: Sequence[CompletedPrompt], samples: int = 1, **head: Any) -> dict[str, Any]:
    """An evaluation of these completions, without intervals; `head` replaces what it says of itself."""
    given = {"model": "m", "data": "d", "split": "val", "seed": 1, "target_tokens": 8, "temperature": 1.0}
    given |= {"weights_sha256": "0" * 64, "limit": None}
    return build_evaluation(given | head, prompts, model_arms(prompts, samples), {}, score_words, resamples=0)


def drawn_prompts(seed: int, count: int = 40, samples: int = 1, shift: float = 0.0) -> list[CompletedPrompt]:
    """Prompts that differ in how hard they are, the same for every seed; `shift` is the chance of one word more."""
    hard = np.random.default_rng(99).uniform(0.2, 0.8, count)
    rng = np.random.default_rng(seed)

    def one(index: int) -> Completed:
        chance = min(1.0, hard[index] + shift)
        words = [word for word in ("the", "reference", "of", str(index)) if rng.random() < chance]
        return completed(" ".join(["x", *words]), 4 + int(rng.integers(0, 9)), stopped=bool(rng.random() < 0.9))

    return [prompt(str(i), one(i), *(one(i) for _ in range(samples))) for i in range(count)]
