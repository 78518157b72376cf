"""Numbers, dates and names are found by their spelling; kept ones count, made-up ones cost."""

import pytest

from tersely.errors import ConfigValue
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.fact_finding import facts_of
from tersely.scorer.rewards.facts import CoverageFactsReward

SOURCE = (
    "Yesterday Google released Gemma on 12 March 2024. The model, which Maria Keller's team trained in Zurich, reaches"
    " 64.3% on MMLU with 7 billion weights. Google says that 1,000 testers took part."
)


def score(text: str, measure: str = "fmeasure", document: str = SOURCE) -> float | None:
    return CoverageFactsReward(measure=measure).score([RewardInput(text=text, document=document)])[0]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,000 of 2.50 and 27,5 %", {"1000", "2.5", "27.5"}),
        ("1.5 million, 7 Billion, 1 000", {"1500000", "7000000000", "1", "0"}),
        ("two cats and twelve dogs, but one may wait", {"2", "12"}),
        ("GPT4 and v2 are names; the 4th of 7B", {"4", "7"}),
        ("\u0664\u0662 and ４２", {"42"}),
        ("9" * 400 + " of it", {"9" * 400}),
        ("", set()),
    ],
)
def test_numbers_are_compared_by_value(text: str, numbers: set[str]) -> None:
    assert set(facts_of(text).numbers) == numbers


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("on 12 March 2024 it", (2024, 3, 12)),
        ("on March 12th, 2024,", (2024, 3, 12)),
        ("2024-03-12", (2024, 3, 12)),
        ("in Sept. 2019", (2019, 9, None)),
        ("on the 3rd of May", (None, 5, 3)),
        ("2024-13-40 may be", None),
    ],
)
def test_dates_are_found_in_their_usual_spellings(text: str, date: tuple[int | None, int, int | None] | None) -> None:
    assert list(facts_of(text).dates) == ([date] if date else [])


def test_names_are_capitalised_words_that_are_not_just_first_in_a_sentence_or_also_written_small() -> None:
    facts = facts_of(SOURCE)
    assert set(facts.names) == {"google", "gemma", "maria", "keller", "zurich", "mmlu"}
    assert facts.names["google"] == 2
    assert not facts_of("The Model is good. A model is small. Then it ends.").names
    assert set(facts_of("SmolLM2 runs. iPhone too.").names) == {"smollm2", "iphone"}


def test_a_summary_of_the_sources_facts_has_precision_one_and_more_recall_the_more_it_keeps() -> None:
    short, longer = "Google released Gemma.", "Google released Gemma on 12 March 2024; it reaches 64.3% on MMLU."
    assert score(short, "precision") == score(longer, "precision") == 1.0
    assert 0 < (score(short, "recall") or 0) < (score(longer, "recall") or 0) < 1
    assert (score(short) or 0) < (score(longer) or 0)
    assert score(SOURCE) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        "Google released Gemma on 13 March 2024.",
        "Google released Gemma with 65.3% on MMLU.",
        "In Zurich, Google and Microsoft released Gemma.",
        "Google released Gemma, with 2,000 testers.",
    ],
)
def test_a_fact_that_the_source_lacks_costs_precision(wrong: str) -> None:
    assert (score(wrong, "precision") or 0) < 1


def test_a_date_that_says_less_is_supported_and_one_that_says_more_is_not() -> None:
    assert score("Gemma came in March 2024.", "precision") == 1.0
    assert (score("It came on 12 March 2024.", "precision", "It came in March 2024.") or 0) < 1.0


def test_naming_nothing_is_no_invention_but_keeps_nothing() -> None:
    assert score("a model was released", "precision") == 1.0
    assert score("a model was released", "recall") == 0.0
    assert score("a model was released") == 0.0


def test_without_a_source_or_without_any_fact_there_is_no_value() -> None:
    assert score("Google", document=" ") is None
    assert score("nothing here", document="nothing there") is None
    assert score("in 1999", "recall", "nothing there") is None
    assert score("in 1999", "precision", "nothing there") == score("in 1999", "fmeasure", "nothing there") == 0.0


def test_other_scripts_and_odd_texts_give_numbers_and_no_failure() -> None:
    assert score("2024年", "precision", "2024 年发布，共 42 个") is not None
    for text in ["文章提出了一种新模型。", "🙂🙂", "\u0130stanbul ' \u2019 ..", "A" * 5000, "1,1,1,1" * 2000, "\x00"]:
        value = score(text)
        assert value is None or 0 <= value <= 1


def test_a_wrong_measure_names_the_nearest() -> None:
    with pytest.raises(ConfigValue, match=r"rewards\.coverage_facts\.measure"):
        CoverageFactsReward(measure="f1")
