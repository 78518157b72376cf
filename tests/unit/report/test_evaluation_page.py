"""The pages of evaluations: whole, self-contained, and safe from what models and data write."""

from __future__ import annotations

from html.parser import HTMLParser

from tersely.evaluation.compare import compare
from tersely.report.evaluation_page import render_comparison, render_evaluation
from tersely.testing.evaluations import completed, drawn_prompts, evaluation, prompt

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(1)> the reference"
VOID = {"meta", "br", "rect", "line", "circle"}


class Checker(HTMLParser):
    """Tags are closed in order, and nothing from outside is loaded or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "script" not in checker.seen
    assert "img" not in checker.seen
    return checker


def test_an_evaluation_has_table_pictures_and_both_ends_of_its_examples() -> None:
    prompts = [*drawn_prompts(1, count=12), prompt(HOSTILE, completed(HOSTILE, 9), completed("", 0), document=HOSTILE)]
    page = render_evaluation(evaluation(prompts, model=HOSTILE))
    assert "svg" in check(page).seen
    for title in ("Worst by the composite", "Best by the composite", "Quality against length", "Length, greedy"):
        assert title in page
    assert "the reference of 3" in page


def test_the_judges_reasons_are_shown_with_worst_and_best() -> None:
    found = evaluation(drawn_prompts(1, count=4))
    for example in found["greedy"]["examples"]:
        example["judge"] = {"clarity": f"unclear <b>because</b> {example['id']}"}
    page = render_evaluation(found)
    assert "unclear &lt;b&gt;because&lt;/b&gt; 0" in page


def test_a_comparison_shows_its_tests_and_what_changed_most() -> None:
    evaluations = {"a": evaluation(drawn_prompts(1, count=12)), HOSTILE: evaluation(drawn_prompts(2, count=12))}
    page = render_comparison(compare(evaluations, resamples=0), evaluations)
    check(page)
    for title in ("Lost most", "Gained most", "p (Holm)", "composite at equal length, sampled"):
        assert title in page


def test_an_evaluation_of_one_prompt_has_a_page() -> None:
    check(render_evaluation(evaluation([prompt("only", completed("x", 8))], samples=0)))
