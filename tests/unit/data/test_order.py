from __future__ import annotations

import pytest

from tersely.data.order import prompt_index


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    epochs = [[prompt_index(3, epoch * 10 + i, 10) for i in range(10)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_depends_on_the_seed_alone() -> None:
    order = [prompt_index(0, i, 24) for i in range(24)]
    assert order == [prompt_index(0, i, 24) for i in reversed(range(24))][::-1]
    assert order != [prompt_index(1, i, 24) for i in range(24)]


def test_the_order_of_a_seed_never_changes_between_releases() -> None:
    assert [prompt_index(0, i, 6) for i in range(12)] == [5, 0, 1, 4, 3, 2, 2, 0, 4, 3, 1, 5]


def test_a_single_prompt_is_always_taken() -> None:
    assert {prompt_index(5, i, 1) for i in range(5)} == {0}


@pytest.mark.parametrize(("issue", "n"), [(0, 0), (-1, 4)])
def test_nonsense_is_refused(issue: int, n: int) -> None:
    with pytest.raises(ValueError, match="no prompt"):
        prompt_index(0, issue, n)
