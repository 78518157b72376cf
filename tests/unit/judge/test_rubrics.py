import pytest

from tersely.judge.rubrics import ALL, AXES, fingerprint, rubrics_version

FROZEN = {
    "faithfulness-1": "3e2797b8269adbdd",
    "coverage-1": "5195449e694c34eb",
    "conciseness-1": "898c47d612905c44",
    "clarity-1": "c5afb81a8cdf72da",
}


def test_a_rubric_never_changes_under_its_version_id() -> None:
    assert {rubric.version: fingerprint(rubric) for rubric in ALL} == FROZEN
    assert rubrics_version() == "1-b71ba84d"


def test_four_axes_in_a_fixed_order() -> None:
    assert AXES == ("faithfulness", "coverage", "conciseness", "clarity")


@pytest.mark.parametrize("rubric", ALL, ids=lambda rubric: rubric.axis)
def test_every_score_from_0_to_10_has_an_anchor(rubric) -> None:
    assert [score for low, high, _ in rubric.anchors for score in range(low, high + 1)] == list(range(11))
