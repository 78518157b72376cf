"""How the rows of a group are cut into blocks for the forward pass, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Sequence

BLOCK_COST_TOKENS = 32
"""What a block costs beside its positions (weight gradients added once more), in positions; measured on a CPU."""


def row_blocks(widths: Sequence[int], *, max_positions: int | None = None) -> list[list[int]]:
    """Rows of similar width together, at the least sum of (rows x widest row) + a fixed cost per block.

    Args:
        widths: Positions of each row; rows of width 0 are left out.
        max_positions: Most positions of a block, unless a single row has more; none: no limit.

    Returns:
        Blocks of row indices, wider rows first. Equal widths give one block. Deterministic.
    """
    rows = sorted((row for row, width in enumerate(widths) if width > 0), key=lambda row: (-widths[row], row))
    best: list[tuple[int, int]] = [(0, 0)]  # for the first n rows: (cost, start of the last block)
    for end in range(1, len(rows) + 1):
        options = []
        for start in range(end):
            positions = (end - start) * widths[rows[start]]
            if max_positions is None or positions <= max_positions or end - start == 1:
                options.append((best[start][0] + positions + BLOCK_COST_TOKENS, start))
        best.append(min(options))
    blocks, end = [], len(rows)
    while end > 0:
        start = best[end][1]
        blocks.append(rows[start:end])
        end = start
    return blocks[::-1]
