"""The longest common subsequence that rouge-score would pick, for ROUGE-Lsum, where it matters which one it is.

rouge-score fills a table of whole numbers in Python and walks back through it. Here a row of the table is one Python
integer: bit j is 0 where the row grows by one from column j to j + 1, so that a row takes three operations on 64 cells
at a time, and the walk back reads the same cells.
Source: Hyyro 2004, "Bit-parallel LCS-length computation revisited"; the walk is rouge-score 0.1.2's `_backtrack_norec`.
"""

from __future__ import annotations


def common_positions(reference: str, candidate: str) -> set[int]:
    """Positions in `reference` of the longest common subsequence with `candidate` that rouge-score reads out.

    Args:
        reference: One character per word.
        candidate: One character per word, of the same vocabulary.
    """
    rows = _rows(reference, candidate)
    positions: set[int] = set()
    i, j = len(reference), len(candidate)
    while i > 0 and j > 0:
        if reference[i - 1] == candidate[j - 1]:
            positions.add(i - 1)
            i -= 1
            j -= 1
        elif _cell(rows[i], j - 1) > _cell(rows[i - 1], j):
            j -= 1
        else:
            i -= 1
    return positions


def _rows(reference: str, candidate: str) -> list[int]:
    """Row i of the table as bits, for the first i words of the reference."""
    places: dict[str, int] = {}
    for j, word in enumerate(candidate):
        places[word] = places.get(word, 0) | (1 << j)
    full = (1 << len(candidate)) - 1
    row, rows = full, [full]
    for word in reference:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
        rows.append(row)
    return rows


def _cell(row: int, j: int) -> int:
    """Length of the common subsequence with the first j words of the candidate."""
    return j - (row & ((1 << j) - 1)).bit_count()
