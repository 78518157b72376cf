import pytest

from tersely.trainer.ledger import Issue, Ledger, Outcome
from tersely.types import GroupId, IssueNumber


def ledger_with(count: int) -> Ledger:
    ledger = Ledger()
    for number in range(count):
        ledger.record_issue(Issue(GroupId(f"g{number}"), IssueNumber(number), f"p{number}"))
    return ledger


def test_books_balance_when_every_group_has_its_fate() -> None:
    ledger = ledger_with(5)
    for number, outcome in enumerate((Outcome.TRAINED, Outcome.STALE, Outcome.NO_SIGNAL, Outcome.QUARANTINED)):
        assert ledger.record_outcome(GroupId(f"g{number}"), outcome)
    counts = ledger.counts(in_flight=1)
    assert counts == {"issued": 5, "trained": 1, "stale": 1, "no_signal": 1, "quarantined": 1, "in_flight": 1}
    assert counts["issued"] == sum(value for key, value in counts.items() if key != "issued")


def test_the_first_outcome_of_a_group_stands() -> None:
    ledger = ledger_with(1)
    assert ledger.record_outcome(GroupId("g0"), Outcome.TRAINED)
    assert not ledger.record_outcome(GroupId("g0"), Outcome.STALE)
    assert ledger.outcome(GroupId("g0")) is Outcome.TRAINED
    assert ledger.counts(0)["stale"] == 0


def test_an_issue_number_can_be_neither_skipped_nor_used_twice() -> None:
    ledger = ledger_with(2)
    for wrong in (1, 3):
        with pytest.raises(ValueError, match="2 expected"):
            ledger.record_issue(Issue(GroupId("x"), IssueNumber(wrong), "p"))


def test_open_groups_missing_from_the_streams_are_named() -> None:
    ledger = ledger_with(3)
    ledger.record_outcome(GroupId("g0"), Outcome.TRAINED)
    assert ledger.missing({GroupId("g0"), GroupId("g2"), GroupId("stranger")}) == ["g1"]
