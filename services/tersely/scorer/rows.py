"""Rows of JSON in, rows of JSON out: `score_batch` for whoever has texts and no queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tersely.errors import ConfigValue, DataRecord
from tersely.scorer.batch import score_batch
from tersely.scorer.registry import build_reward, installed_rewards
from tersely.scorer.rewards.base import Reward, RewardInput
from tersely.v1 import group_pb2

Row = Mapping[str, Any]
"""A row to score: "id", "completion", and as far as known "reference", "document", "target_tokens",
"completion_tokens", "stopped", "group" (the same for completions of one prompt)."""


class RowScorer:
    """Rewards that are set up once and score any number of batches of rows.

    Args:
        rewards: Names, in the order wanted; each once.
        options: Options of a reward's constructor, by its name.

    Raises:
        RewardUnknown, RewardFailed, ConfigUnknownKey, ConfigValue: A reward can't be set up.
    """

    def __init__(self, rewards: Sequence[str], options: Mapping[str, Mapping[str, object]] | None = None) -> None:
        given = options or {}
        check_names(rewards, given)
        installed = installed_rewards()
        self.rewards: list[Reward] = [build_reward(name, given.get(name), installed) for name in rewards]

    def score(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """One output row per row, in order: {"id", "rewards": {name: number or None}, "errors"?: {name: reason}}.

        `errors` holds the reasons of those values that are None, and is left out when there are none.

        Raises:
            DataRecord: A field has the wrong type; the message counts rows from 1.
        """
        keys = _group_keys(rows)
        inputs = [
            row_input(row, key, f"row {number}") for number, (row, key) in enumerate(zip(rows, keys, strict=True), 1)
        ]
        values = score_batch(inputs, self.rewards)
        return [_out(row["id"], column) for row, column in zip(rows, values, strict=True)]


def score_rows(
    rows: Sequence[Row], rewards: Sequence[str], *, options: Mapping[str, Mapping[str, object]] | None = None
) -> list[dict[str, Any]]:
    """Scores rows in this process, once; see `RowScorer`."""
    return RowScorer(rewards, options).score(rows)


def check_names(rewards: Sequence[str], options: Mapping[str, object]) -> None:
    """Refuses a list of rewards that can't be meant.

    Raises:
        ConfigValue: It is empty, names one twice, or there are options for one that is not in it.
    """
    if not rewards:
        raise ConfigValue("No reward is named.", "Name at least one, like --rewards rouge_l,length.")
    twice = sorted({name for name in rewards if list(rewards).count(name) > 1})
    if twice:
        raise ConfigValue(f"The reward {twice[0]} is named twice.", "Name each reward once.")
    stray = sorted(set(options) - set(rewards))
    if stray:
        raise ConfigValue(
            f"There are options for {stray[0]}, which is not among the rewards.", "Name it, or drop them."
        )


def row_input(row: Row, group_key: str, where: str) -> RewardInput:
    """A row as rewards see it.

    Args:
        row: See `Row`; null counts as missing.
        group_key: Same for rows whose reference, document and target are the same.
        where: File and line, for messages.

    Raises:
        DataRecord: A field is missing or has the wrong type.
    """
    identity = row.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise DataRecord(f"{where}: the field 'id' is neither text nor a whole number.", "Give each row an id.")
    if row.get("completion") is None:
        names = ", ".join(str(name) for name in list(row)[:8])
        raise DataRecord(f"{where}: there is no field 'completion' (it has: {names}).", "Add the summary to score.")
    stopped = row.get("stopped")
    if stopped is not None and not isinstance(stopped, bool):
        raise DataRecord(f"{where}: the field 'stopped' is neither true nor false.", "Mend it or leave it out.")
    return RewardInput(
        text=_text(row, "completion", where),
        token_count=_count(row, "completion_tokens", where),
        stopped=stopped,
        target_tokens=_count(row, "target_tokens", where),
        reference=_text(row, "reference", where),
        document=_text(row, "document", where),
        group_key=group_key,
    )


def _text(row: Row, field: str, where: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataRecord(f"{where}: the field {field!r} is not text.", "Make it a JSON string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataRecord(
            f"{where}: the field {field!r} holds half a character (a lone surrogate).", "Mend it."
        ) from None
    return value


def _count(row: Row, field: str, where: str) -> int | None:
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise DataRecord(f"{where}: the field {field!r} is not a whole number of tokens.", "Mend it or leave it out.")
    return value


def _group_keys(rows: Sequence[Row]) -> list[str]:
    """A row without a group is its own, so that it spoils no other; a group is split where its prompts differ."""
    prompts: dict[tuple[str, ...], str] = {}
    keys = []
    for index, row in enumerate(rows):
        if row.get("group") is None:
            keys.append(f"row {index}")
            continue
        prompt = tuple(repr(row.get(field)) for field in ("group", "reference", "document", "target_tokens"))
        keys.append(prompts.setdefault(prompt, f"group {len(prompts)}"))
    return keys


def _out(identity: str | int, values: Sequence[group_pb2.RewardValue]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": identity,
        "rewards": {value.name: value.value if value.HasField("value") else None for value in values},
    }
    errors = {value.name: value.absent_reason or "no value" for value in values if not value.HasField("value")}
    return row | {"errors": errors} if errors else row
