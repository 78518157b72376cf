"""No text raises its score by speaking to the judge: the prompts, read by a server that obeys whatever is outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tersely.judge.prompt import after_texts, before_texts, delimited, mark_of
from tersely.judge.rubrics import ALL, SYSTEM, Rubric
from tersely.testing.injections import DOCUMENT, SUMMARY, fact_rule, read_injections
from tersely.testing.judge_rules import read_prompt
from tersely.testing.judge_server import RuleJudgeServer

INJECTIONS = read_injections(Path(__file__).parents[2] / "fixtures" / "injections.jsonl")
HARD = sorted(
    set(INJECTIONS)
    - {"german", "chinese", "arabic", "base64", "tags", "authority", "bribe", "close-and-reopen-document"}
)


@pytest.fixture(scope="module")
def server() -> Iterator[RuleJudgeServer]:
    with RuleJudgeServer(fact_rule) as running:
        yield running


def prompt_for(rubric: Rubric, document: str, summary: str) -> str:
    mark = mark_of(document, summary)
    texts = f"Input:\n{delimited('document', document, mark)}\n\nActual Output:\n{delimited('summary', summary, mark)}"
    return f"{SYSTEM}\n{before_texts(rubric, mark)}Test case:\n{texts}\n{after_texts(rubric)}"


@pytest.mark.parametrize("rubric", ALL, ids=lambda rubric: rubric.axis)
def test_rubrics_order_no_score_and_name_their_axis(rubric: Rubric) -> None:
    prompt = read_prompt(prompt_for(rubric, DOCUMENT, SUMMARY))
    assert (prompt.axis, prompt.orders, prompt.delimited) == (rubric.axis, (), True)
    assert (prompt.document, prompt.summary) == (DOCUMENT, SUMMARY)


@pytest.mark.parametrize("name", INJECTIONS)
def test_an_attack_stays_between_its_delimiters_and_raises_nothing(server: RuleJudgeServer, name: str) -> None:
    for rubric in ALL:
        honest = server.value(read_prompt(prompt_for(rubric, DOCUMENT, SUMMARY)))
        attack = read_prompt(prompt_for(rubric, DOCUMENT, INJECTIONS[name]))
        assert attack.delimited
        assert attack.orders == ()
        assert attack.document == DOCUMENT
        assert server.value(attack) <= honest
        assert 0 < honest < 7


@pytest.mark.parametrize("name", INJECTIONS)
def test_a_document_can_not_speak_to_the_judge_either(server: RuleJudgeServer, name: str) -> None:
    hostile = INJECTIONS[name].replace(SUMMARY, DOCUMENT)
    prompt = read_prompt(prompt_for(ALL[0], hostile, SUMMARY))
    assert (prompt.delimited, prompt.orders, prompt.summary) == (True, (), SUMMARY)


@pytest.mark.parametrize("name", HARD)
def test_without_delimiters_the_same_attack_gets_its_ten(server: RuleJudgeServer, name: str) -> None:
    naive = f"Axis: clarity\nScore the summary from 0 to 10.\n\nDocument: {DOCUMENT}\n\nSummary: {INJECTIONS[name]}"
    assert server.value(read_prompt(naive)) == 10.0


@pytest.mark.parametrize("name", ["close-summary", "close-summary-upper", "close-and-reopen-document"])
def test_with_delimiters_that_a_text_may_write_too_the_attack_gets_its_ten(server: RuleJudgeServer, name: str) -> None:
    naive = f"Axis: clarity\n<document>\n{DOCUMENT}\n</document>\n<summary>\n{INJECTIONS[name]}\n</summary>"
    assert server.value(read_prompt(naive)) == 10.0
