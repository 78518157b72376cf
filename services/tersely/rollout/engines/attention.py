"""Attention over a prompt that a group shares and over what each of its rows has sampled, without copying either.

Scores against the prompt and against the row's own tokens are two products, over groups and over rows; one softmax
runs over both, so the result is that of plain attention up to rounding. Query heads that share a key head are stacked
as more queries of that head, so keys are never repeated.

Suffixes of tensors: N tokens that are fed, R rows, T tokens per row (padded), G groups, M rows per group (padded), H
query heads, K key heads, P prompt positions, C positions after the prompt, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tersely.rollout.engines.kv_cache import SlotBuffer


class Attend(Protocol):
    """Attention of the tokens that are fed, for one layer after the other."""

    def __call__(self, layer: int, query_NHD: Tensor, keys_values_N2KD: Tensor, scale: float) -> Tensor:
        """Keeps keys and values as its plan says; returns tokens x (heads * head size)."""


class CausalAttend:
    """One text from its beginning.

    Args:
        prompts: Where its keys and values are kept; None: nowhere.
        slot: Slot of the buffer.
    """

    def __init__(self, prompts: SlotBuffer | None = None, slot: int = 0) -> None:
        self._prompts, self._slot = prompts, slot

    def __call__(self, layer: int, query_NHD: Tensor, keys_values_N2KD: Tensor, scale: float) -> Tensor:
        """Attention of each token to itself and those before it."""
        tokens, heads = query_NHD.shape[:2]
        keys_values_2KND = keys_values_N2KD.permute(1, 2, 0, 3)
        if self._prompts is not None:
            self._prompts.layers[layer][:, self._slot, :, :tokens] = keys_values_2KND
        repeated_2HND = keys_values_2KND.repeat_interleave(heads // keys_values_2KND.shape[1], dim=1)
        out_1HND = functional.scaled_dot_product_attention(
            query_NHD.transpose(0, 1).unsqueeze(0),
            repeated_2HND[0:1],
            repeated_2HND[1:2],
            is_causal=tokens > 1,
            scale=scale,
        )
        return out_1HND[0].transpose(0, 1).reshape(tokens, -1)


class RowsAttend:
    """The next tokens of all rows: row r, in slot r, is fed counts[r] tokens after the starts[r] it has already.

    Args:
        prompts: Holds each group's prompt in slot g.
        rows: Holds what each row was fed after its prompt.
        prompt_lengths: Tokens of each group's prompt.
        groups: Group of each row.
        starts: Tokens of each row held already.
        counts: Tokens fed now, of row 0 first; 0 for a row that is not fed.
    """

    def __init__(
        self,
        prompts: SlotBuffer,
        rows: SlotBuffer,
        prompt_lengths: Sequence[int],
        groups: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
    ) -> None:
        self._prompts, self._rows = prompts, rows
        device = rows.layers[0].device
        self._R, self._T, self._G, self._P = len(groups), max(counts), len(prompt_lengths), max(prompt_lengths)
        self._C = max(start + count for start, count in zip(starts, counts, strict=True))
        slots: list[int] = []
        columns: list[int] = []
        padded: list[int] = []
        real: list[int] = []
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            first = len(slots)
            padded += [first + t if t < count else 0 for t in range(self._T)]
            real += [row * self._T + t for t in range(count)]
            slots += [row] * count
            columns += range(start, start + count)
        places = torch.tensor([slots, columns], device=device)
        self._slots_N, self._columns_N = places[0], places[1]
        whole = len(slots) == self._R * self._T
        self._padded_RT = None if whole else torch.tensor(padded, device=device)
        self._real_N = None if whole else torch.tensor(real, device=device)
        self._set_members(groups, device)
        self._mask_R11TX = self._make_mask(prompt_lengths, groups, starts, device)

    def _set_members(self, groups: Sequence[int], device: torch.device) -> None:
        members: list[list[int]] = [[] for _ in range(self._G)]
        places = []
        for row, group in enumerate(groups):
            places.append(len(members[group]))
            members[group].append(row)
        self._M = max(len(rows) for rows in members)
        flat = [row for rows in members for row in rows + [0] * (self._M - len(rows))]
        ordered = flat == list(range(self._R))
        self._members_GM = None if ordered else torch.tensor(flat, device=device)
        at = [group * self._M + place for group, place in zip(groups, places, strict=True)]
        self._place_R = None if ordered else torch.tensor(at, device=device)

    def _make_mask(
        self, prompt_lengths: Sequence[int], groups: Sequence[int], starts: Sequence[int], device: torch.device
    ) -> Tensor | None:
        if self._T == 1 and len(set(starts)) == 1 and len(set(prompt_lengths)) == 1:
            return None
        lengths_R1 = torch.tensor([prompt_lengths[group] for group in groups], device=device)[:, None]
        beyond_RP = torch.arange(self._P, device=device)[None, :] >= lengths_R1
        own_RT1 = (torch.tensor(starts, device=device)[:, None] + torch.arange(self._T, device=device))[:, :, None]
        beyond_RTC = torch.arange(self._C, device=device) > own_RT1
        beyond_RTX = torch.cat((beyond_RP[:, None, :].expand(-1, self._T, -1), beyond_RTC), dim=2)
        mask_RTX = torch.zeros(beyond_RTX.shape, device=device).masked_fill_(beyond_RTX, float("-inf"))
        return mask_RTX[:, None, None]

    def __call__(self, layer: int, query_NHD: Tensor, keys_values_N2KD: Tensor, scale: float) -> Tensor:
        """Attention of each token to its prompt, to its row's tokens before it, and to itself."""
        rows_2RKCD, prompts_2GKPD = self._rows.layers[layer], self._prompts.layers[layer]
        R, T, G, M, P, C = self._R, self._T, self._G, self._M, self._P, self._C
        H, D = query_NHD.shape[1:]
        K = keys_values_N2KD.shape[2]
        S = H // K * T
        rows_2RKCD[:, self._slots_N, :, self._columns_N] = keys_values_N2KD
        query_RTHD = query_NHD if self._padded_RT is None else query_NHD.index_select(0, self._padded_RT)
        scaled_RKSD = (query_RTHD * scale).reshape(R, T, K, H // K, D).permute(0, 2, 3, 1, 4).reshape(R, K, S, D)

        keys_ZCD, values_ZCD = rows_2RKCD[:, :R, :, :C].reshape(2, R * K, C, D)
        own_RKSC = torch.bmm(scaled_RKSD.reshape(R * K, S, D), keys_ZCD.transpose(1, 2)).view(R, K, S, C)
        keys_ZPD, values_ZPD = prompts_2GKPD[:, :G, :, :P].reshape(2, G * K, P, D)
        of_groups_ZD = self._by_group(scaled_RKSD).reshape(G * K, M * S, D)
        shared_GKMSP = torch.bmm(of_groups_ZD, keys_ZPD.transpose(1, 2)).view(G, K, M, S, P)
        scores_RKSX = torch.cat((self._by_row(shared_GKMSP), own_RKSC), dim=-1)
        if self._mask_R11TX is not None:
            masked = scores_RKSX.reshape(R, K, H // K, T, P + C) + self._mask_R11TX
            scores_RKSX = masked.view(R, K, S, P + C)
        weights_RKSX = torch.softmax(scores_RKSX, dim=-1, dtype=self._softmax_dtype(scores_RKSX)).to(query_NHD.dtype)

        from_own_RKSD = torch.bmm(weights_RKSX[..., P:].reshape(R * K, S, C), values_ZCD).view(R, K, S, D)
        of_groups_ZP = self._by_group(weights_RKSX[..., :P]).reshape(G * K, M * S, P)
        from_shared_RKSD = self._by_row(torch.bmm(of_groups_ZP, values_ZPD).view(G, K, M, S, D))
        out_RKSD = from_own_RKSD + from_shared_RKSD
        out_ZW = out_RKSD.view(R, K, H // K, T, D).permute(0, 3, 1, 2, 4).reshape(R * T, H * D)
        return out_ZW if self._real_N is None else out_ZW.index_select(0, self._real_N)

    def _by_group(self, of_rows_RKSx: Tensor) -> Tensor:
        """R x K x S x any -> G x K x M x S x any."""
        if self._members_GM is not None:
            of_rows_RKSx = of_rows_RKSx.index_select(0, self._members_GM)
        return of_rows_RKSx.reshape(self._G, self._M, *of_rows_RKSx.shape[1:]).transpose(1, 2)

    def _by_row(self, of_groups_GKMSx: Tensor) -> Tensor:
        """G x K x M x S x any -> R x K x S x any."""
        of_rows_RKSx = of_groups_GKMSx.transpose(1, 2).flatten(0, 1)
        return of_rows_RKSx if self._place_R is None else of_rows_RKSx.index_select(0, self._place_R)

    def _softmax_dtype(self, scores: Tensor) -> torch.dtype:
        return torch.promote_types(scores.dtype, torch.float32)
