"""Held-out evaluation at one pinned version, through the same workers and scorers as training.

Evaluation groups are outside the training credits and the run's books, and travel to the workers by a stream of their
own: training groups come first. Each holds one greedy completion and some sampled ones of the same prompt with the same
limit. Results are kept per prompt, so that before and after can be paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tersely.config import Recipe
from tersely.data.prompts import PreparedPrompt, PromptBook
from tersely.data.records import Record
from tersely.data.targets import draw_target
from tersely.evaluation.paired import paired_difference
from tersely.models.tokenizer import PolicyTokenizer
from tersely.trainer.issuing import Issuer
from tersely.trainer.ring import Arrival, Ring
from tersely.trainer.samples import is_within, sample_rows
from tersely.types import WeightsLabel
from tersely.v1 import group_pb2

MODES = ("greedy", "sampled")


def held_out_prompts(records: Sequence[Record], tokenizer: PolicyTokenizer, recipe: Recipe) -> list[PreparedPrompt]:
    """The first `evaluation.prompts` records, each with a target that no evaluation of the run changes.

    Where `length.target_range` is given, a prompt's target is drawn from it by evaluation seed and place.
    """
    book = PromptBook(records[: recipe.evaluation.prompts], tokenizer, recipe.data)
    targets = (
        draw_target(recipe.length.targets, recipe.evaluation.seed, index, book.prompt_id(index))
        for index in range(len(book))
    )
    return [book.prompt(index, target) for index, target in enumerate(targets)]


class Evaluation:
    """One pass over the held-out prompts.

    Args:
        name: "before", "after", or during training that of the step, e.g. "step-000020".
        label: The weights that generate.
        prompts: Held-out prompts.
        step: Steps trained so far.
    """

    def __init__(self, name: str, label: WeightsLabel, prompts: Sequence[PreparedPrompt], step: int = 0) -> None:
        self.name = name
        self.label = label
        self.step = step
        self._prompts = prompts
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._failed: set[str] = set()
        self._missing: set[str] = set()

    @property
    def done(self) -> int:
        """Prompts that have come back, or never will."""
        return len(self._rows.keys() | self._failed)

    @property
    def of(self) -> int:
        """Prompts in all."""
        return len(self._prompts)

    @property
    def complete(self) -> bool:
        """Whether every prompt has come back."""
        return self.done == self.of

    def send(self, issuer: Issuer, ring: Ring) -> None:
        """Sends all prompts on their way, but for those that an earlier trainer of the run sent."""
        on_their_way = ring.evaluation_groups_in_streams()
        ring.send_evaluation([group for group in self._groups(issuer) if group.group_id not in on_their_way])

    def resend_lost(self, issuer: Issuer, ring: Ring) -> None:
        """Sends prompts again that were in no stream at two calls in a row: the server was wiped."""
        known = ring.evaluation_groups_in_streams() | self._rows.keys() | self._failed
        lost = [group for group in self._groups(issuer) if group.group_id not in known]
        ring.send_evaluation([group for group in lost if group.group_id in self._missing])
        self._missing = {group.group_id for group in lost if group.group_id not in self._missing}

    def _groups(self, issuer: Issuer) -> Iterator[group_pb2.PromptGroup]:
        for index, prompt in enumerate(self._prompts):
            yield issuer.evaluation_group(self.name, index, prompt, self.label)

    def take(self, scored: group_pb2.ScoredGroup) -> bool:
        """Books a group; False when it is not one of this evaluation, was sampled by other weights, or comes again."""
        prompt = scored.group.prompt
        if not prompt.group_id.startswith(f"eval-{self.name}-") or prompt.group_id in self._rows:
            return False
        spans = [span for completion in scored.group.completions for span in completion.version_spans]
        if any(WeightsLabel.from_proto(span.weights) != self.label for span in spans):
            return False
        self._failed.discard(prompt.group_id)
        self._rows[prompt.group_id] = _rows(scored, self.name, self.step)
        return True

    def give_up_on(self, group_id: str) -> None:
        """A group of this evaluation was quarantined: its prompt is left out, and counted as failed."""
        if group_id.startswith(f"eval-{self.name}-") and group_id not in self._rows:
            self._failed.add(group_id)

    def result(self) -> dict[str, Any]:
        """Figures and rows, as kept in evaluation-NAME.json."""
        place = {prompt.prompt_id: index for index, prompt in enumerate(self._prompts)}
        ordered = sorted((row for rows in self._rows.values() for row in rows), key=lambda row: place[row["prompt_id"]])
        return {
            "name": self.name,
            "step": self.step,
            "policy_version": self.label.policy_version,
            "weights_sha256": self.label.weights_sha256,
            "failed_prompts": len(self._failed),
            **{mode: summarise([row for row in ordered if row["mode"] == mode]) for mode in MODES},
            "rows": ordered,
        }


class EvaluationDesk:
    """The evaluations under way, in the order they were begun: routes arrivals to them and lets go of their leases."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.under_way: list[Evaluation] = []

    def take(self, arrival: Arrival) -> None:
        """Books an evaluation group, or drops a copy nobody waits for."""
        any(evaluation.take(arrival.group) for evaluation in self.under_way)
        self._ring.acknowledge([arrival.lease])

    def quarantined(self, group_id: str) -> None:
        """An evaluation group ended in the quarantine."""
        for evaluation in self.under_way:
            evaluation.give_up_on(group_id)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over completions of one mode: tokens, absolute length error, share within +-5, share stopped, rewards.

    Lengths are held against each prompt's own target. What can't be computed is None.
    """
    if not rows:
        empty = dict.fromkeys(("mean_tokens", "mean_abs_length_error", "within_5", "stopped", "rouge_l"))
        return {**empty, "rewards": {}, "n": 0}
    count = len(rows)
    rewards = {name: _mean([row["rewards"][name] for row in rows]) for name in rows[0]["rewards"]}
    return {
        "mean_tokens": sum(row["tokens"] for row in rows) / count,
        "mean_abs_length_error": sum(row["abs_length_error"] for row in rows) / count,
        "within_5": sum(row["within_5"] for row in rows) / count,
        "stopped": sum(row["stopped"] for row in rows) / count,
        "rouge_l": rewards.get("rouge_l"),
        "rewards": rewards,
        "n": len({row["prompt_id"] for row in rows}),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def paired(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Differences after - before per prompt, with 95 % intervals, for each mode."""
    out: dict[str, Any] = {}
    for mode in MODES:
        out[mode] = {
            f"{figure}_difference": paired_difference(_by_prompt(before, mode, figure), _by_prompt(after, mode, figure))
            for figure in ("rouge_l", "abs_length_error")
        }
    return out


def examples(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The greedy summaries of the first `count` held-out prompts, before and after: never chosen by outcome."""
    late = {row["prompt_id"]: row for row in after if row["mode"] == "greedy"}
    early = [row for row in before if row["mode"] == "greedy" and row["prompt_id"] in late]
    return [
        {
            "prompt_id": row["prompt_id"],
            "target_tokens": row.get("target_tokens"),
            "document": row["document"],
            "reference": row["reference"],
            "before": row["text"],
            "after": late[row["prompt_id"]]["text"],
            "before_tokens": row["tokens"],
            "after_tokens": late[row["prompt_id"]]["tokens"],
        }
        for row in early[:count]
    ]


def _by_prompt(rows: Sequence[dict[str, Any]], mode: str, figure: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["mode"] == mode and row[figure] is not None:
            values.setdefault(row["prompt_id"], []).append(float(row[figure]))
    return {prompt_id: sum(found) / len(found) for prompt_id, found in values.items()}


def _rows(scored: group_pb2.ScoredGroup, name: str, step: int) -> list[dict[str, Any]]:
    """Rows as samples.jsonl has them, with what is measured on held-out prompts."""
    prompt = scored.group.prompt
    rows = []
    for index, row in enumerate(sample_rows(scored, step=step, outcome="evaluation", advantages=None)):
        rows.append(
            {
                **row,
                "evaluation": name,
                "mode": "greedy" if index < prompt.sampling.greedy_samples else "sampled",
                "abs_length_error": abs(row["tokens"] - prompt.target_tokens),
                "within_5": is_within(scored.group.completions[index], prompt.target_tokens),
                "rouge_l": row["rewards"].get("rouge_l"),
            }
        )
    return rows
