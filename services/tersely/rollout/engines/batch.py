"""The groups and rows that run, their places in the cache, and one forward pass over all of them."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor

from tersely.rollout.engines.attention import Attend, CausalAttend, RowsAttend
from tersely.rollout.engines.base import GeneratedGroup, is_bit_exact
from tersely.rollout.engines.kv_cache import CacheShape, SlotBuffer
from tersely.rollout.engines.rows import Group, Row
from tersely.rollout.engines.sampling import sample
from tersely.types import WeightsLabel
from tersely.v1 import group_pb2

_REFILL_TOKENS = 512
"""Tokens fed at a time when caches are made again."""


class ForwardPass(Protocol):
    """A model, filled."""

    shape: CacheShape

    def logits(self, ids_N: Tensor, positions_N: Tensor, attend: Attend, last_only: bool = False) -> Tensor:
        """Next-token logits after each token fed, tokens x vocabulary; or after the last one alone."""


class Batch:
    """What runs on one model.

    Args:
        model: Filled.
        sequences: Rows that there is room for from the start.
        lookup_tokens: Most tokens guessed per row and step; 0: none.
    """

    def __init__(self, model: ForwardPass, sequences: int, lookup_tokens: int) -> None:
        self._model = model
        self._sequences = sequences
        self._lookup_tokens = lookup_tokens
        self._prompts, self._own = SlotBuffer(model.shape), SlotBuffer(model.shape)
        self.groups: list[Group] = []
        """In the order of their slots."""
        self.rows: list[Row] = []
        """Those that have not ended, in the order of their slots."""
        self.tokens_prefilled, self.tokens_drafted, self.tokens_accepted = 0, 0, 0

    def admit(self, prompt: group_pb2.PromptGroup) -> None:
        """Prefills a group's prompt, once, and gives its rows their places."""
        started = time.perf_counter()
        rows = len(self.rows) + prompt.group_size
        length, limit = len(prompt.prompt_token_ids), prompt.sampling.max_completion_tokens
        if is_bit_exact(prompt) and not self.groups:
            # Strides, too, are the same in any process.
            self._prompts.make(1, length)
            self._own.make(rows, limit)
        else:
            self._prompts.ensure(len(self.groups) + 1, length)
            self._own.ensure(max(rows, self._sequences), limit)
        logits_1V = self._prefill(prompt, len(self.groups))
        group = Group(prompt, logits_1V, started)
        if self._lookup_tokens:
            group.use_lookup()
        self.groups.append(group)
        self.rows += group.rows
        self.tokens_prefilled += length

    def _prefill(self, prompt: group_pb2.PromptGroup, slot: int) -> Tensor:
        ids_P = self._tensor(list(prompt.prompt_token_ids))
        positions_P = torch.arange(len(ids_P), device=ids_P.device)
        return self._model.logits(ids_P, positions_P, CausalAttend(self._prompts, slot), last_only=True)

    def step(self, label: WeightsLabel) -> list[GeneratedGroup]:
        """At least one token for every row; the groups that ended, which leave."""
        for group in self.groups:
            if group.logits is not None:
                logits_1V, group.logits = group.logits, None
                self._draw(logits_1V.expand(len(group.rows), -1), group.rows, [[] for _ in group.rows], label)
        done = self._drop_ended()
        if self.rows:
            drafts = [row.draft(self._lookup_tokens) for row in self.rows]
            fed = [[row.ids[-1], *draft] for row, draft in zip(self.rows, drafts, strict=True)]
            logits_NV = self._feed(fed, [len(row.ids) - 1 for row in self.rows])
            self._draw(logits_NV, self.rows, drafts, label)
            done += self._drop_ended()
        return done

    def _feed(self, fed: list[list[int]], starts: list[int], last_only: bool = False) -> Tensor:
        slots = {id(group): slot for slot, group in enumerate(self.groups)}
        lengths = [group.prompt_tokens for group in self.groups]
        groups = [slots[id(row.group)] for row in self.rows]
        attend = RowsAttend(self._prompts, self._own, lengths, groups, starts, [len(ids) for ids in fed])
        positions = [
            lengths[group] + place
            for group, start, ids in zip(groups, starts, fed, strict=True)
            for place in range(start, start + len(ids))
        ]
        flat = [token for ids in fed for token in ids]
        return self._model.logits(self._tensor(flat), self._tensor(positions), attend, last_only)

    def _draw(self, logits_NV: Tensor, rows: list[Row], drafts: list[list[int]], label: WeightsLabel) -> None:
        """Samples after every token fed, and keeps what does not rest on a wrong guess."""
        uniforms = [
            row.uniform_at(ahead) for row, draft in zip(rows, drafts, strict=True) for ahead in range(len(draft) + 1)
        ]
        temperatures = [
            row.group.prompt.sampling.temperature
            for row, draft in zip(rows, drafts, strict=True)
            for _ in range(len(draft) + 1)
        ]
        drawn = sample(logits_NV, temperatures, uniforms)
        at = 0
        for row, draft in zip(rows, drafts, strict=True):
            accepted = 0
            for ahead in range(len(draft) + 1):
                token = drawn.ids[at + ahead]
                row.take(token, drawn.logprobs[at + ahead], label)
                if row.ended or ahead == len(draft) or draft[ahead] != token:
                    break
                accepted += 1
            if row.drafter is not None and draft:
                row.drafter.judge(len(draft), accepted)
                self.tokens_drafted += len(draft)
                self.tokens_accepted += accepted
            at += len(draft) + 1

    def _drop_ended(self) -> list[GeneratedGroup]:
        for slot in range(len(self.rows) - 1, -1, -1):
            if self.rows[slot].ended:
                self._drop_row(slot)
        ended = [group for group in self.groups if group.ended]
        for group in ended:
            self._drop_group(group)
        return [group.finished() for group in ended]

    def cancel(self, group_id: str) -> None:
        """Forgets a group; an unknown one is left alone."""
        for group in [group for group in self.groups if group.prompt.group_id == group_id]:
            for slot in range(len(self.rows) - 1, -1, -1):
                if self.rows[slot].group is group:
                    self._drop_row(slot)
            self._drop_group(group)

    def _drop_row(self, slot: int) -> None:
        last = len(self.rows) - 1
        self._own.move(last, slot, max(len(self.rows[last].ids) - 1, 0))
        self.rows[slot] = self.rows[last]
        self.rows.pop()

    def _drop_group(self, group: Group) -> None:
        slot, last = self.groups.index(group), len(self.groups) - 1
        self._prompts.move(last, slot, self.groups[last].prompt_tokens)
        self.groups[slot] = self.groups[last]
        self.groups.pop()

    def clear(self) -> None:
        """Forgets what runs, after a failure; also the buffers, as they may hold NaN, which a mask does not hide."""
        self.groups, self.rows = [], []
        self._prompts, self._own = SlotBuffer(self._model.shape), SlotBuffer(self._model.shape)

    def refill(self) -> None:
        """Makes all keys and values again, under other weights."""
        for slot, group in enumerate(self.groups):
            logits_1V = self._prefill(group.prompt, slot)
            if group.logits is not None:
                group.logits = logits_1V
        fed = [row.ids[:-1] for row in self.rows]
        longest = max((len(ids) for ids in fed), default=0)
        width = max(_REFILL_TOKENS // max(len(self.rows), 1), 1)
        for start in range(0, longest, width):
            part = [ids[start : start + width] for ids in fed]
            self._feed(part, [min(start, len(ids)) for ids in fed], last_only=True)

    def score(self, token_ids: list[int]) -> list[float]:
        """Log-probability of each id from the second on; what runs is untouched."""
        ids_N = self._tensor(token_ids)
        logits_NV = self._model.logits(ids_N, torch.arange(len(ids_N), device=ids_N.device), CausalAttend())
        logprobs_NV = torch.log_softmax(logits_NV[:-1].float(), dim=-1)
        scores: list[float] = logprobs_NV.gather(1, ids_N[1:, None]).squeeze(1).tolist()
        return scores

    def _tensor(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=self._model.shape.device)
