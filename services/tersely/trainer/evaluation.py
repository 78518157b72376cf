"""Held-out evaluation at one pinned version, through the same workers and scorers as training.

Evaluation groups are outside the training credits and the run's books. Each holds one greedy completion and some
sampled ones of the same prompt with the same limit. Results are kept per prompt, so that before and after can be
paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tersely.data.prompts import PreparedPrompt
from tersely.evaluation.paired import paired_difference
from tersely.trainer.issuing import Issuer
from tersely.trainer.ring import Arrival, Ring
from tersely.trainer.samples import is_within, length_tokens, reward_columns, stopped
from tersely.types import WeightsLabel
from tersely.v1 import group_pb2

MODES = ("greedy", "sampled")


class Evaluation:
    """One pass over the held-out prompts.

    Args:
        name: "before" or "after".
        label: The weights that generate.
        prompts: Held-out prompts.
    """

    def __init__(self, name: str, label: WeightsLabel, prompts: Sequence[PreparedPrompt]) -> None:
        self.name = name
        self.label = label
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
        on_their_way = ring.groups_in_streams()
        for index, prompt in enumerate(self._prompts):
            group = issuer.evaluation_group(self.name, index, prompt, self.label)
            if group.group_id not in on_their_way:
                ring.send(group)

    def resend_lost(self, issuer: Issuer, ring: Ring) -> None:
        """Sends prompts again that were in no stream at two calls in a row: the server was wiped."""
        in_streams = ring.groups_in_streams()
        lost = set()
        for index, prompt in enumerate(self._prompts):
            group = issuer.evaluation_group(self.name, index, prompt, self.label)
            if group.group_id in self._rows.keys() | self._failed or group.group_id in in_streams:
                continue
            if group.group_id in self._missing:
                ring.send(group)
            else:
                lost.add(group.group_id)
        self._missing = lost

    def take(self, scored: group_pb2.ScoredGroup) -> bool:
        """Books a group; False when it is not one of this evaluation, or a second copy."""
        prompt = scored.group.prompt
        if not prompt.group_id.startswith(f"eval-{self.name}-") or prompt.group_id in self._rows:
            return False
        self._failed.discard(prompt.group_id)
        self._rows[prompt.group_id] = _rows(scored)
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
            "policy_version": self.label.policy_version,
            "weights_sha256": self.label.weights_sha256,
            "failed_prompts": len(self._failed),
            **{mode: summarise([row for row in ordered if row["mode"] == mode]) for mode in MODES},
            "rows": ordered,
        }


class EvaluationDesk:
    """The evaluation under way, if any: routes arrivals to it and lets go of their leases."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.current: Evaluation | None = None

    def take(self, arrival: Arrival) -> None:
        """Books an evaluation group, or drops a copy nobody waits for."""
        if self.current is not None:
            self.current.take(arrival.group)
        self._ring.acknowledge([arrival.lease])

    def quarantined(self, group_id: str) -> None:
        """An evaluation group ended in the quarantine."""
        if self.current is not None:
            self.current.give_up_on(group_id)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over completions of one mode: tokens, absolute length error, share within +-5, share stopped, ROUGE-L."""
    if not rows:
        return {
            "mean_tokens": None,
            "mean_abs_length_error": None,
            "within_5": None,
            "stopped": None,
            "rouge_l": None,
            "n": 0,
        }
    rouge = [row["rouge_l"] for row in rows if row["rouge_l"] is not None]
    count = len(rows)
    return {
        "mean_tokens": sum(row["tokens"] for row in rows) / count,
        "mean_abs_length_error": sum(row["abs_length_error"] for row in rows) / count,
        "within_5": sum(row["within_5"] for row in rows) / count,
        "stopped": sum(row["stopped"] for row in rows) / count,
        "rouge_l": sum(rouge) / len(rouge) if rouge else None,
        "n": len({row["prompt_id"] for row in rows}),
    }


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


def _rows(scored: group_pb2.ScoredGroup) -> list[dict[str, Any]]:
    prompt, columns = scored.group.prompt, reward_columns(scored)
    rows = []
    for index, completion in enumerate(scored.group.completions):
        tokens = length_tokens(completion)
        rows.append(
            {
                "prompt_id": prompt.prompt_id,
                "mode": "greedy" if index < prompt.sampling.greedy_samples else "sampled",
                "tokens": tokens,
                "abs_length_error": abs(tokens - prompt.target_tokens),
                "within_5": is_within(completion, prompt.target_tokens),
                "stopped": stopped(completion),
                "rouge_l": columns["rouge_l"][index] if "rouge_l" in columns else None,
                "text": completion.text,
                "document": prompt.document,
                "reference": prompt.reference,
            }
        )
    return rows
