"""All of `tersely bench scorer`: ROUGE-L beside rouge-score in turns, and how many pairs the other rewards score."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from tersely.data.aclsum import load_aclsum
from tersely.errors import DownloadFailed
from tersely.scorer.registry import build_reward
from tersely.scorer.rewards.base import Reward, RewardInput
from tersely.scorer.rewards.rouge import RougeLReward
from tersely.scorer.rewards.words import VocabularyHolder, rouge_words

GROUP_SIZE = 8
SUMMARY_WORDS = (20, 60)
OTHERS = (
    "rouge_1",
    "rouge_2",
    "rouge_lsum",
    "rouge_l_unicode",
    "bleu",
    "chrf",
    "meteor_exact_stem",
    "coverage_facts",
    "repetition",
    "copy_rate",
)
_SYLLABLES = ("ba", "con", "de", "fi", "gra", "ho", "in", "ka", "lu", "mo", "ne", "or", "pre", "ri", "sta", "tor", "ve")
_ENDINGS = ("", "", "s", "ing", "ed", "ation", "izes", "ly", "fulness", "er")

Group = list[RewardInput]


def run_bench_scorer(
    *, turns: int = 5, groups: int = 250, seed: int = 0, progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measures on one core, in this thread.

    In every turn both sides score the same groups, group by group in turns, one call per group. Ours begins every turn
    knowing no word, so that stemming counts; how fast it is when the words are known is told beside.

    Args:
        turns: Repetitions; figures are medians.
        groups: Groups of eight per turn.
        seed: Of the texts.
        progress: Told what goes on.

    Returns:
        `pairs_per_second`, `ratio_over_rouge_score` and `details`.
    """
    texts, where = _texts(seed)
    if where != "aclsum":
        progress(where)
    made = make_groups(texts, groups, seed)
    pairs = groups * GROUP_SIZE
    theirs = RougeScorer(["rougeL"], use_stemmer=True)
    rates: dict[str, list[float]] = {"ours": [], "known words": [], "rouge-score": []}
    difference = 0.0
    for turn in range(turns):
        reward = _fresh_rouge_l()
        ours = peer = 0.0
        for group in made:
            seconds, values = _timed(reward, [group])
            began = time.perf_counter()
            expected = [theirs.score(item.reference, item.text)["rougeL"].fmeasure for item in group]
            peer += time.perf_counter() - began
            ours += seconds
            difference = max(difference, *(abs(a - b) for a, b in zip(values, expected, strict=True)))
        again, _ = _timed(reward, made)
        rates["ours"].append(pairs / ours)
        rates["rouge-score"].append(pairs / peer)
        rates["known words"].append(pairs / again)
        progress(f"turn {turn + 1} of {turns}: {rates['ours'][-1]:.0f} and {rates['rouge-score'][-1]:.0f} pairs/s")
    ratios = [ours / other for ours, other in zip(rates["ours"], rates["rouge-score"], strict=True)]
    others = {name: round(pairs / _timed(build_reward(name), made)[0]) for name in OTHERS}
    words = [len(item.text.split()) for group in made for item in group]
    return {
        "pairs_per_second": round(statistics.median(rates["ours"]), 1),
        "ratio_over_rouge_score": round(statistics.median(ratios), 2),
        "details": {
            "rouge_score_pairs_per_second": round(statistics.median(rates["rouge-score"]), 1),
            "pairs_per_second_known_words": round(statistics.median(rates["known words"]), 1),
            "ratios": [round(ratio, 2) for ratio in ratios],
            "largest_difference": difference,
            "texts": where,
            "groups": groups,
            "group_size": GROUP_SIZE,
            "mean_words": {
                "summary": round(statistics.mean(words), 1),
                "reference": round(statistics.mean(len(group[0].reference.split()) for group in made), 1),
            },
            "other_rewards_pairs_per_second": others,
        },
    }


def make_groups(texts: Sequence[tuple[str, str]], groups: int, seed: int) -> list[Group]:
    """Groups of eight: a reference, and eight runs of words of the document that it belongs to.

    Args:
        texts: Document and reference; used again from the beginning when there are too few.
        groups: How many.
        seed: Of where runs begin and end.
    """
    rng = random.Random(seed)
    made = []
    for number in range(groups):
        document, reference = texts[number % len(texts)]
        words = document.split()
        group = []
        for _ in range(GROUP_SIZE):
            length = rng.randint(*SUMMARY_WORDS)
            start = rng.randrange(max(1, len(words) - length))
            text = " ".join(words[start : start + length])
            group.append(RewardInput(text=text, reference=reference, document=document, group_key=str(number)))
        made.append(group)
    return made


def _texts(seed: int) -> tuple[list[tuple[str, str]], str]:
    try:
        records = [record for split in ("train", "val") for record in load_aclsum(split)]
    except DownloadFailed as error:
        return made_texts(150, seed), f"made of syllables, as ACLSum can't be had: {error}"
    return [(record.document, record.summary) for record in records], "aclsum"


def made_texts(number: int, seed: int) -> list[tuple[str, str]]:
    """Documents of 150 words and references of 60, of made-up words that are as unevenly frequent as real ones."""
    rng = random.Random(seed)
    stems = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(4000)]
    weights = [1 / (rank + 3) for rank in range(len(stems))]

    def text(words: int) -> str:
        return " ".join(stem + rng.choice(_ENDINGS) for stem in rng.choices(stems, weights, k=words))

    return [(text(150), text(60)) for _ in range(number)]


def _fresh_rouge_l() -> RougeLReward:
    """The reward as a scorer has it that has just been started."""

    class Fresh(RougeLReward):
        vocabularies = VocabularyHolder(rouge_words)

    return Fresh()


def _timed(reward: Reward, made: Sequence[Group]) -> tuple[float, list[float]]:
    """Seconds, and values in order."""
    began = time.perf_counter()
    columns = [reward.score(group) for group in made]
    return time.perf_counter() - began, [value or 0.0 for column in columns for value in column]
