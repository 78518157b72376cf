"""A deterministic engine without a model, for load tests: tokens come from the seeds and the label alone."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tersely.errors import ConfigValue, EngineFailed
from tersely.grpo.seeds import uniform
from tersely.rollout.engines.base import Capabilities, EngineSettings, GeneratedGroup, is_bit_exact
from tersely.testing.stub_pace import STEP_SECONDS_ENV, STEP_TOKENS_ENV
from tersely.types import WeightsLabel
from tersely.v1 import common_pb2, group_pb2

if TYPE_CHECKING:
    from torch import Tensor

_LENGTH_POSITION = 2**32 - 1
"""Position in the seed space that no token can have: it decides the length."""


@dataclass(slots=True)
class _Row:
    """A running sequence: its whole course is known when it begins, and is shown step by step.

    Attributes:
        sample_index: Place in its group.
        stops: Whether it ends with a stop token.
        planned: Ids that it has and, as long as the weights stay, will have.
        done: How many of them are sampled.
        spans: (label, first token) of each stretch under one label.
    """

    sample_index: int
    stops: bool
    planned: list[int]
    done: int = 0
    spans: list[tuple[WeightsLabel, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Running:
    group: group_pb2.PromptGroup
    rows: list[_Row]
    began: float

    @property
    def rows_running(self) -> int:
        return sum(row.done < len(row.planned) for row in self.rows)


class StubEngine:
    """Draws ids evenly from the vocabulary and lengths evenly around the target; weights need only keep their shapes.

    How fast it pretends to be is for whoever starts the process to say, not for recipes: `TERSELY_STUB_STEP_SECONDS`
    and `TERSELY_STUB_STEP_TOKENS` in the environment. As there is no model, `score` agrees with no learner.

    Args:
        settings: batch_sequences and batch_tokens bound what it takes in.
        step_seconds: Seconds that each step sleeps; none: from the environment.
        step_tokens: Tokens of each sequence per step; none: from the environment.

    Raises:
        ConfigValue: The environment holds no number there.
    """

    def __init__(
        self, settings: EngineSettings, step_seconds: float | None = None, step_tokens: int | None = None
    ) -> None:
        self._settings = settings
        self._step_seconds = _from_environment(STEP_SECONDS_ENV, 0.0) if step_seconds is None else step_seconds
        self._step_tokens = max(1, int(_from_environment(STEP_TOKENS_ENV, 4) if step_tokens is None else step_tokens))
        self._vocabulary = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._label: WeightsLabel | None = None
        self._running: dict[str, _Running] = {}

    @property
    def label(self) -> WeightsLabel | None:
        """Label of the weights held; none before `load`."""
        return self._label

    @property
    def running(self) -> int:
        """Groups admitted and not yet finished or cancelled."""
        return len(self._running)

    @property
    def rows_running(self) -> int:
        """Sequences of them that have not ended; only these take places of the batch."""
        return sum(running.rows_running for running in self._running.values())

    def capabilities(self) -> Capabilities:
        """What this engine can do; its tolerance is infinite, because it has no model to agree with."""
        return Capabilities(
            "stub",
            "none",
            1,
            bit_exact=True,
            batch_sequences=self._settings.batch_sequences,
            dtype="none",
            in_flight=True,
            logprob_tolerance=math.inf,
        )

    def load(self, model_folder: Path, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Reads the vocabulary size from config.json and remembers the tensors' shapes.

        Raises:
            EngineFailed: There is no config with a vocabulary, or it has fewer than two ids.
        """
        try:
            vocabulary = int(json.loads((model_folder / "config.json").read_text("utf-8"))["vocab_size"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineFailed(f"{model_folder} has no config.json with a vocab_size.", "Check the model.") from error
        if vocabulary < 2:
            raise EngineFailed(f"A vocabulary of {vocabulary} ids is too small to sample from.", "Check the model.")
        self._vocabulary, self._shapes, self._label = vocabulary, _shapes(weights), label

    def swap(self, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Takes the label; what runs goes on under it with other ids, its length stays.

        Raises:
            EngineFailed: Nothing is loaded, or names or shapes differ from before.
        """
        if self._label is None:
            raise EngineFailed("No model is loaded whose weights could be swapped.", "Load one first.")
        if _shapes(weights) != self._shapes:
            raise EngineFailed("The weights have other names or shapes than before.", "Give all workers one model.")
        self._label = label
        for running in self._running.values():
            for row in running.rows:
                if row.done < len(row.planned):
                    row.planned[row.done :] = self._ids(running.group, row, label)[row.done :]
                    _begin_span(row, label)

    def has_room(self, group: group_pb2.PromptGroup) -> bool:
        """Whether a group may be admitted now."""
        if not self._running:
            return True
        others = self._running.values()
        if is_bit_exact(group) or any(is_bit_exact(other.group) for other in others):
            return False
        rows = self.rows_running + group.group_size
        tokens = sum(_tokens(other.group, other.rows_running) for other in others) + _tokens(group, group.group_size)
        most = self._settings.batch_tokens
        return rows <= self._settings.batch_sequences and (most is None or tokens <= most)

    def admit(self, group: group_pb2.PromptGroup) -> None:
        """Takes a group in and plans its completions.

        Raises:
            EngineFailed: No model is loaded, or the group is empty.
        """
        if self._label is None:
            raise EngineFailed("No model is loaded to generate with.", "Load one first.")
        if not group.prompt_token_ids or group.group_size < 1 or group.sampling.max_completion_tokens < 1:
            raise EngineFailed(f"Group {group.group_id} has no prompt, no samples or no room for tokens.")
        rows = [self._row(group, sample_index, self._label) for sample_index in range(group.group_size)]
        self._running[group.group_id] = _Running(group, rows, time.perf_counter())

    def step(self) -> list[GeneratedGroup]:
        """Shows the next tokens of every running sequence; the groups that ended, in order of admission."""
        if self._running and self._step_seconds:
            time.sleep(self._step_seconds)
        finished = []
        for group_id, running in list(self._running.items()):
            for row in running.rows:
                row.done = min(row.done + self._step_tokens, len(row.planned))
            if all(row.done == len(row.planned) for row in running.rows):
                del self._running[group_id]
                completions = tuple(self._completion(row) for row in running.rows)
                finished.append(GeneratedGroup(running.group, completions, time.perf_counter() - running.began))
        return finished

    def cancel(self, group_id: str) -> None:
        """Forgets a running group; an unknown one is left alone."""
        self._running.pop(group_id, None)

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Every id is as likely as every other.

        Raises:
            EngineFailed: No model is loaded.
        """
        if self._label is None:
            raise EngineFailed("No model is loaded to score with.", "Load one first.")
        return [-math.log(self._vocabulary)] * max(len(token_ids) - 1, 0)

    def _row(self, group: group_pb2.PromptGroup, sample_index: int, label: WeightsLabel) -> _Row:
        seed, index = _seed(group, sample_index, label)
        wanted = 1 + int(uniform(seed, index, _LENGTH_POSITION) * 2 * max(group.target_tokens, 1))
        limit = group.sampling.max_completion_tokens
        row = _Row(sample_index, bool(group.stop_token_ids) and wanted <= limit, [0] * min(wanted, limit))
        row.planned = self._ids(group, row, label)
        _begin_span(row, label)
        return row

    def _ids(self, group: group_pb2.PromptGroup, row: _Row, label: WeightsLabel) -> list[int]:
        """All ids of a row under one label: a long hash read in pieces of 32 bits; a stop token only at its end."""
        seed, index = _seed(group, row.sample_index, label)
        length = len(row.planned)
        block = hashlib.shake_128(f"{seed}|{index}".encode()).digest(4 * length)
        planned: list[int] = ((np.frombuffer(block, "<u4").astype(np.uint64) * self._vocabulary) >> 32).tolist()
        stops = set(group.stop_token_ids)
        if len(stops) >= self._vocabulary:
            raise EngineFailed(f"All {self._vocabulary} ids of the vocabulary end a completion.", "Check the model.")
        for place in [place for place, token in enumerate(planned) if token in stops]:
            while planned[place] in stops:
                planned[place] = (planned[place] + 1) % self._vocabulary
        if row.stops:
            planned[-1] = group.stop_token_ids[0]
        return planned

    def _completion(self, row: _Row) -> group_pb2.Completion:
        ends = [first for _, first in row.spans[1:]] + [len(row.planned)]
        return group_pb2.Completion(
            sample_index=row.sample_index,
            token_ids=row.planned,
            behaviour_logprobs=[-math.log(self._vocabulary)] * len(row.planned),
            finish_reason=common_pb2.FINISH_REASON_STOP if row.stops else common_pb2.FINISH_REASON_LENGTH,
            version_spans=[
                group_pb2.VersionSpan(weights=label.to_proto(), first_token=first, token_count=end - first)
                for (label, first), end in zip(row.spans, ends, strict=True)
            ],
        )


def _begin_span(row: _Row, label: WeightsLabel) -> None:
    """The tokens from here on are under this label; a span without any token never was."""
    if row.spans and row.spans[-1][1] == row.done:
        row.spans.pop()
    row.spans.append((label, row.done))


def _seed(group: group_pb2.PromptGroup, sample_index: int, label: WeightsLabel) -> tuple[int, int]:
    if sample_index < group.sampling.greedy_samples:
        return _mix(str(label), group.prompt_id), 0
    return _mix(str(label), str(group.sampling.seed)), sample_index


def _tokens(group: group_pb2.PromptGroup, rows: int) -> int:
    return len(group.prompt_token_ids) + rows * int(group.sampling.max_completion_tokens)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _mix(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("|".join(parts).encode(), digest_size=8).digest(), "big")


def _from_environment(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ConfigValue(f"{name}={text!r} is no number of at least 0.", "Give a number, or unset it.")
    return value
