"""The engine for Apple silicon: mlx-lm's BatchGenerator with our seeds, logprobs and weights; on the CPU elsewhere.

What BatchGenerator leaves to us: a group's prompt runs through the model once (all but its last token, which every
sample runs for itself) and its keys and values are handed to all samples; each sample has a sampler of its own, whose
numbers come from the group's seed; logprobs are those of the tempered distribution, and the stop token is kept.
BatchGenerator samples one token ahead. A swap throws those away: running samples are taken out, and go in again with
their tokens so far, whose keys and values are then those of the new weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import psutil
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import make_prompt_cache

from tersely.errors import EngineFailed
from tersely.rollout.engines.base import HALF_TOLERANCE, Capabilities, EngineSettings, GeneratedGroup, is_bit_exact
from tersely.rollout.engines.mlx_model import build_model, choose_device, fill, token_bytes
from tersely.rollout.engines.mlx_rows import Row, RunningGroup, row_sampler
from tersely.types import WeightsLabel
from tersely.v1 import common_pb2, group_pb2

if TYPE_CHECKING:
    from torch import Tensor

_PREFILL_TOKENS = 512
_MEMORY_SHARE = 0.5
"""Part of the free memory that keys and values may take; the rest is for activations and everything else."""
_REASONS = {"stop": common_pb2.FINISH_REASON_STOP, "length": common_pb2.FINISH_REASON_LENGTH}
_NO_LIMIT = 1 << 20


class MlxEngine:
    """Samples with MLX; bf16 on Metal, fp32 on the CPU. All calls after `load` come from the thread that loaded.

    Args:
        settings: Device (`auto`, `cpu`, or `mps` for Metal), sequences and tokens held at a time. MLX chooses its
            threads itself, and drafts nothing by look-up.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._device = choose_device(settings.device)
        self._on_cpu = self._device == mx.Device(mx.cpu)
        self._dtype = mx.float32 if self._on_cpu else mx.bfloat16
        self._stream = mx.new_thread_local_stream(self._device)
        self._owner: int | None = None
        self._model: Any = None
        self._generator: Any = None
        self._label: WeightsLabel | None = None
        self._budget_tokens = 0
        self._groups: dict[str, RunningGroup] = {}
        self._rows: dict[int, tuple[RunningGroup, Row]] = {}
        self._done: list[GeneratedGroup] = []

    @property
    def label(self) -> WeightsLabel | None:
        """Label of the weights held; none before `load`."""
        return self._label

    @property
    def running(self) -> int:
        """Groups admitted and not yet handed back or cancelled."""
        return len(self._groups) + len(self._done)

    @property
    def rows_running(self) -> int:
        """Sequences of them that have not ended; only these take places of the batch."""
        return len(self._rows)

    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(
            name="mlx",
            device="cpu" if self._on_cpu else "metal",
            threads=1,
            bit_exact=self._on_cpu,
            batch_sequences=self._settings.batch_sequences,
            dtype="float32" if self._on_cpu else "bfloat16",
            in_flight=True,
            logprob_tolerance=1e-3 if self._on_cpu else HALF_TOLERANCE,
        )

    def load(self, model_folder: Path, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Builds the model from config.json alone and fills it; what ran before is forgotten.

        Raises:
            EngineFailed: mlx-lm has no such model, or the weights do not fit it.
        """
        self._owner = threading.get_ident()
        with self._mine():
            model = build_model(model_folder)
            fill(model, weights, self._dtype)
            self._groups, self._rows, self._done = {}, {}, []
            self._model, self._label = model, label
            self._generator = BatchGenerator(
                model, completion_batch_size=_NO_LIMIT, prefill_batch_size=_NO_LIMIT, stream=self._stream
            )
            self._budget_tokens = self._settings.batch_tokens or self._tokens_that_fit()

    def swap(self, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Puts other weights of the same model in place; if they don't fit, the old ones stay and running groups go on.

        Raises:
            EngineFailed: Nothing is loaded yet, or the weights do not fit the model.
            Exception: What MLX raised while it ran a prompt again: the new weights are in place, and the groups whose
                prompts did not run are forgotten.
        """
        with self._mine():
            if self._model is None:
                raise EngineFailed("No model is loaded whose weights could be swapped.", "Load one first.")
            fill(self._model, weights, self._dtype)
            self._label = label
            again = list(self._groups.values())
            self._take_out(list(self._rows))
            # Whoever is left without rows would count as running and never end.
            self._groups = {}
            for group in again:
                self._put_in(group)

    def has_room(self, group: group_pb2.PromptGroup) -> bool:
        """Whether `admit` may be called for it now; always true when nothing runs."""
        running = self._groups.values()
        if not running:
            return True
        if is_bit_exact(group) or any(is_bit_exact(one.prompt) for one in running):
            return False
        if len(self._rows) + group.group_size > self._settings.batch_sequences:
            return False
        held = sum(_tokens_held(one.prompt, one.rows_running) for one in running)
        return held + _tokens_held(group, group.group_size) <= self._budget_tokens

    def admit(self, group: group_pb2.PromptGroup) -> None:
        """Takes a group in and runs its prompt once.

        Raises:
            EngineFailed: Nothing is loaded, the group runs already, or it has no prompt, samples or room for tokens.
        """
        with self._mine():
            if self._model is None:
                raise EngineFailed("No model is loaded to generate with.", "Load one first.")
            if group.group_id in self._groups:
                raise EngineFailed(f"Group {group.group_id} is running already.")
            if not group.prompt_token_ids or group.group_size < 1 or group.sampling.max_completion_tokens < 1:
                raise EngineFailed(f"Group {group.group_id} has no prompt, no samples or no room for tokens.")
            rows = [Row(index, row_sampler(group, index, 0, self._on_cpu)) for index in range(group.group_size)]
            self._put_in(RunningGroup(group, rows))

    def step(self) -> list[GeneratedGroup]:
        """At least one token for every running sequence; the groups whose last one ended, in the order they ended.

        Raises:
            EngineFailed: The logits of a group were not finite; that group is forgotten, the others go on.
        """
        with self._mine():
            waiting = set(self._rows)
            while waiting and not self._done:
                waiting -= self._advance()
                self._drop_unsound()
            finished, self._done = self._done, []
            return finished

    def cancel(self, group_id: str) -> None:
        """Forgets a running group at once; an unknown one is left alone."""
        self._done = [one for one in self._done if one.prompt.group_id != group_id]
        if group_id in self._groups:
            with self._mine():
                self._take_out([uid for uid, (group, _) in self._rows.items() if group.prompt.group_id == group_id])
                del self._groups[group_id]

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability (temperature 1) of each id from the second on, given those before it; nothing may run.

        Raises:
            EngineFailed: Nothing is loaded.
        """
        with self._mine():
            if self._model is None:
                raise EngineFailed("No model is loaded to score with.", "Load one first.")
            scores: list[float] = []
            cache = make_prompt_cache(self._model)
            for start in range(0, len(token_ids) - 1, _PREFILL_TOKENS):
                inputs = list(token_ids[start : min(start + _PREFILL_TOKENS, len(token_ids) - 1)])
                nexts_1P1 = mx.array([token_ids[start + 1 : start + 1 + len(inputs)]])[..., None]
                logits_1PV = self._model(mx.array([inputs]), cache=cache).astype(mx.float32)
                logprobs_1PV = logits_1PV - mx.logsumexp(logits_1PV, axis=-1, keepdims=True)
                chosen: Any = mx.take_along_axis(logprobs_1PV, nexts_1P1, axis=-1)[0, :, 0].tolist()
                scores.extend(chosen)
            return scores

    def _advance(self) -> set[int]:
        """One turn of the generator; the rows that got a token."""
        assert self._label is not None
        answers = self._generator.next_generated()
        logprobs = mx.concatenate([self._rows[answer.uid][1].sampler.next_logprob() for answer in answers])
        values: Any = logprobs[:, 0].tolist()
        for answer, logprob in zip(answers, values, strict=True):
            group, row = self._rows[answer.uid]
            row.take(int(answer.token), logprob, self._label)
            if answer.finish_reason is not None:
                row.reason = _REASONS[answer.finish_reason]
                del self._rows[answer.uid]
        for group in [one for one in self._groups.values() if one.ended and one.is_sound]:
            self._done.append(group.finished())
            del self._groups[group.prompt.group_id]
        return {answer.uid for answer in answers}

    def _drop_unsound(self) -> None:
        unsound = [group_id for group_id, group in self._groups.items() if not group.is_sound]
        for group_id in unsound:
            self.cancel(group_id)
        if unsound:
            raise EngineFailed(f"The logits of {', '.join(unsound)} are not finite.", "Look at the gradient norm.")

    def _put_in(self, group: RunningGroup) -> None:
        """Runs the prompt but for its last token, and gives its keys and values to every row that has not ended."""
        prompt, limit = list(group.prompt.prompt_token_ids), group.prompt.sampling.max_completion_tokens
        cache = make_prompt_cache(self._model)
        for start in range(0, len(prompt) - 1, _PREFILL_TOKENS):
            self._model(mx.array([prompt[start : min(start + _PREFILL_TOKENS, len(prompt) - 1)]]), cache=cache)
            mx.eval([layer.state for layer in cache])
        rows = [row for row in group.rows if not row.reason]
        stops = StopSequences([[token] for token in group.prompt.stop_token_ids])
        for row in rows:
            row.sampler = row_sampler(group.prompt, row.sample_index, len(row.ids), self._on_cpu)
        uids = self._generator.insert(
            [[prompt[-1], *row.ids] for row in rows],
            max_tokens=[limit - len(row.ids) for row in rows],
            caches=[cache] * len(rows),
            all_tokens=[prompt[:-1] for _ in rows],
            samplers=[row.sampler for row in rows],
            stop_sequences=[stops] * len(rows),
        )
        self._groups[group.prompt.group_id] = group
        self._rows.update((uid, (group, row)) for uid, row in zip(uids, rows, strict=True))

    def _take_out(self, uids: list[int]) -> None:
        self._generator.remove(uids)
        for uid in uids:
            del self._rows[uid]

    def _tokens_that_fit(self) -> int:
        if self._on_cpu:
            free = psutil.virtual_memory().available
        else:
            free = int(mx.device_info()["max_recommended_working_set_size"]) - mx.get_active_memory()
        return int(max(free, 0) * _MEMORY_SHARE) // token_bytes(self._model)

    @contextmanager
    def _mine(self) -> Iterator[None]:
        if self._owner not in (None, threading.get_ident()):
            raise EngineFailed("The MLX engine is called from a thread that did not load it.")
        with mx.stream(self._stream):
            yield


def _tokens_held(group: group_pb2.PromptGroup, rows: int) -> int:
    return len(group.prompt_token_ids) + rows * group.sampling.max_completion_tokens
