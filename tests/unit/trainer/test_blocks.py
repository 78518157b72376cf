from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tersely.trainer.blocks import BLOCK_COST_TOKENS, row_blocks


def cost(widths: list[int], blocks: list[list[int]]) -> int:
    return sum(len(block) * max(widths[row] for row in block) + BLOCK_COST_TOKENS for block in blocks)


@given(st.lists(st.integers(0, 200), max_size=12), st.none() | st.integers(1, 500))
def test_every_row_with_positions_is_in_one_block_and_limits_hold(widths: list[int], limit: int | None) -> None:
    blocks = row_blocks(widths, max_positions=limit)
    assert sorted(row for block in blocks for row in block) == [row for row, width in enumerate(widths) if width]
    for block in blocks:
        assert widths[block[0]] == max(widths[row] for row in block)
        assert limit is None or len(block) == 1 or len(block) * widths[block[0]] <= limit


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_cutting_is_never_dearer_than_one_block_or_single_rows(widths: list[int]) -> None:
    rows = list(range(len(widths)))
    least = min(cost(widths, [rows]), cost(widths, [[row] for row in rows]))
    assert cost(widths, row_blocks(widths)) <= least


def test_equal_rows_stay_together_and_very_unequal_ones_part() -> None:
    assert row_blocks([48] * 8) == [list(range(8))]
    assert row_blocks([200, 20, 200, 20]) == [[0, 2], [1, 3]]
