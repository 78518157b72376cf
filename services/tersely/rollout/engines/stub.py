"""A deterministic engine without a model, for load tests: tokens come from the seeds and the label alone."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tersely.errors import EngineFailed
from tersely.grpo.seeds import uniform
from tersely.rollout.engines.base import Capabilities, EngineSettings, GeneratedGroup
from tersely.types import WeightsLabel
from tersely.v1 import common_pb2, group_pb2

if TYPE_CHECKING:
    from torch import Tensor

_LENGTH_POSITION = 2**32 - 1
"""Position in the seed space that no token can have: it decides the length."""


class StubEngine:
    """Draws ids evenly from the vocabulary and lengths evenly around the target; weights need only keep their shapes.

    Args:
        settings: Only batch_sequences is reported back.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._vocabulary = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._label: WeightsLabel | None = None

    @property
    def label(self) -> WeightsLabel | None:
        """Label of the weights held; none before `load`."""
        return self._label

    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities("stub", "none", 1, bit_exact=True, batch_sequences=self._settings.batch_sequences)

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
        """Takes the label; raises EngineFailed if nothing is loaded or names or shapes differ from before."""
        if self._label is None:
            raise EngineFailed("No model is loaded whose weights could be swapped.", "Load one first.")
        if _shapes(weights) != self._shapes:
            raise EngineFailed("The weights have other names or shapes than before.", "Give all workers one model.")
        self._label = label

    def generate(
        self, groups: Sequence[group_pb2.PromptGroup], cancelled: Callable[[], bool]
    ) -> Iterator[GeneratedGroup]:
        """Yields the groups in order; stops between two samples once `cancelled()`."""
        if self._label is None:
            raise EngineFailed("No model is loaded to generate with.", "Load one first.")
        for group in groups:
            started = time.perf_counter()
            completions = []
            for sample_index in range(group.group_size):
                if cancelled():
                    return
                completions.append(self._completion(group, sample_index, self._label))
            yield GeneratedGroup(group, tuple(completions), time.perf_counter() - started)

    def _completion(self, group: group_pb2.PromptGroup, sample_index: int, label: WeightsLabel) -> group_pb2.Completion:
        greedy = sample_index < group.sampling.greedy_samples
        seed = _mix(str(label), group.prompt_id) if greedy else _mix(str(label), str(group.sampling.seed))
        index = 0 if greedy else sample_index
        limit = group.sampling.max_completion_tokens
        wanted = 1 + int(uniform(seed, index, _LENGTH_POSITION) * 2 * max(group.target_tokens, 1))
        stops = bool(group.stop_token_ids) and wanted <= limit
        length = min(wanted, limit)
        ids = [self._token(seed, index, place, group) for place in range(length - 1 if stops else length)]
        if stops:
            ids.append(group.stop_token_ids[0])
        reason = common_pb2.FINISH_REASON_STOP if stops else common_pb2.FINISH_REASON_LENGTH
        return group_pb2.Completion(
            sample_index=sample_index,
            token_ids=ids,
            behaviour_logprobs=[-math.log(self._vocabulary)] * length,
            finish_reason=reason,
            version_spans=[group_pb2.VersionSpan(weights=label.to_proto(), first_token=0, token_count=length)],
        )

    def _token(self, seed: int, index: int, place: int, group: group_pb2.PromptGroup) -> int:
        token = int(uniform(seed, index, place) * self._vocabulary)
        while token in group.stop_token_ids:
            token = (token + 1) % self._vocabulary
        return token


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _mix(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("|".join(parts).encode(), digest_size=8).digest(), "big")
